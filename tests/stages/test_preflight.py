"""Preflight: what it says is what the prune then does, and while it looks nothing is begun."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gates.errors import UsageError
from registry.recipes import read_recipe
from registry.store import Store
from stages.common import calibration, preflight, preflight_view
from stages.common.job import Job
from stages.common.preflight import Report, Share
from stages.common.spool import Spool
from stages.prune import check, prune
from tests.support import faults, tiny
from tests.support.moe import write_model

PROJECT = Path(__file__).resolve().parents[2]
ROWS = {"short.jsonl": 12, "long.jsonl": 300}
"""The letters of a row, by file."""


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A registry with the candidate `parent`, and a project beside it with a mix of 6 short rows and 3 long ones."""
    folder = tmp_path_factory.mktemp("preflight")
    Store.init(folder / "models").add("parent", write_model(folder / "source"))
    for name, length in ROWS.items():
        write_rows(folder / name, [chat(f"{number:03}" + "x" * length) for number in range(10)])
    datasets = "datasets: [{path: short.jsonl, count: 6}, {path: long.jsonl, count: 3}]\n"
    (folder / "mix.yaml").write_text(f"name: mix\n{datasets}", encoding="utf-8")
    return folder


def recipe(place: Path, name: str = "child", parent: str = "parent", **settings: Any) -> Path:
    step = {"compression": 0.25, "mix": "mix.yaml"} | settings
    path = place / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "parent": parent, "steps": [{"prune": step}]}), encoding="utf-8")
    return path


def job(place: Path, name: str = "child", device: str = "auto", **settings: Any) -> Job:
    read = read_recipe(recipe(place, name, **settings))
    store = Store.open(place / "models")
    step = read.steps[0].settings
    return Job(store, place, read, step, store.candidate(read.parent), name, replace=False, device=device)


def files(place: Path) -> dict[str, int]:
    """Everything in the registry but locks, with the time of its last change."""
    root = place / "models"
    return {
        str(path.relative_to(root)): path.lstat().st_mtime_ns
        for path in root.rglob("*")
        if path.relative_to(root).parts[0] != "locks"
    }


def stage(place: Path, recipe: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--root", place / "models", "--project", place, "--recipe", recipe, *more]
    command = [sys.executable, "-m", "stages.prune", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------- what is counted


def test_rows_tokens_and_what_is_cut_are_counted_by_dataset(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "source")
    report = check(job(place, sequence_length=64))
    _, rows = calibration.take("mix.yaml", place)
    lengths = [len(ids) for ids in calibration.tokenized(rows, tokenizer)]
    short, long = report.reading.shares
    assert short == Share(dataset="short.jsonl", rows=6, tokens=sum(lengths[:6]), cut_rows=0, cut_tokens=0)
    assert long == Share(dataset="long.jsonl", rows=3, tokens=3 * 64, cut_rows=3, cut_tokens=sum(lengths[6:]) - 3 * 64)
    read = sum(int(batch.attention_mask.sum()) for batch in report.reading.batches)
    assert report.reading.tokens == read
    assert report.reading.amount.padded >= read


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(8, 300))
def test_no_token_is_counted_twice_or_lost(lengths, longest):
    share = preflight._share("a", lengths, longest)
    assert share.tokens + share.cut_tokens == sum(lengths)
    assert share.tokens <= longest * share.rows
    assert (share.cut_rows == 0) == (share.cut_tokens == 0)


def test_packing_is_told_by_how_few_sequences_there_are(place):
    assert check(job(place, sequence_length=512)).reading.amount.sequences == 9
    assert check(job(place, sequence_length=512, packing=True)).reading.amount.sequences < 9


def test_a_criterion_that_looks_at_no_data_reads_none_and_needs_no_spool(place):
    report = check(job(place, criterion="random"))
    assert (report.reading.shares, report.reading.batches, report.demand.spool) == ((), [], 0)


@pytest.mark.parametrize("mtp", ["prune", "drop"])
def test_the_size_of_the_candidate_and_of_the_spool_are_what_they_then_are(place, mtp, monkeypatch):
    source = place / f"mtp-{mtp}"
    tiny.make(source, "deepseek_v3", fused=False, mtp=True)
    store = Store.open(place / "models")
    store.add(f"deep-{mtp}", source)
    asked = job(place, f"pruned-{mtp}", parent=f"deep-{mtp}", compression=0.5, mtp=mtp, sequence_length=64)
    demand = check(asked).demand
    largest = []
    advance = Spool.advance

    def look(spool: Spool, *arguments: Any, **more: Any) -> None:
        largest.append(sum(path.stat().st_size for path in spool._folder.glob("*.states")))
        advance(spool, *arguments, **more)

    monkeypatch.setattr(Spool, "advance", look)
    prune(asked)
    made = store.candidate(f"pruned-{mtp}").manifest.size
    headers = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert made <= demand.output <= made + headers // 4
    assert demand.spool <= max(largest) <= demand.spool + 2000 * len(largest)


# ----------------------------------------------------------------------------------------------- nothing is begun


def test_a_preflight_is_json_off_a_terminal_and_begins_nothing(place):
    before = files(place)
    done = stage(place, recipe(place), "--preflight")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["rows"] for each in found["datasets"]] == [6, 3]
    assert sum(each["share"] for each in found["datasets"]) == pytest.approx(1)
    assert found["change"] == "6 of 8 experts stay in each layer"
    assert 0 < found["disk"]["output"] < found["disk"]["needed"] < found["disk"]["free"]
    assert found["memory"]["needed"] > 0 < found["estimated_seconds"]
    assert files(place) == before


def test_every_prune_begins_with_its_preflight(place, capsys):
    prune(job(place, "told"))
    first = json.loads(capsys.readouterr().err.splitlines()[0])
    assert first["what"] == "preflight told"
    assert first["datasets"][0]["dataset"] == "short.jsonl"


DRIFT = {
    "a renamed field": ({"message": [{"role": "user", "content": "a"}]}, "message: unknown key"),
    "a changed type": ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content: must be text"),
    "an empty message": ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content: empty"),
    "a foreign role": ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role: must be one of"),
}


@pytest.mark.parametrize(("kind", "how"), [*((kind, ["--preflight"]) for kind in DRIFT), ("a changed type", [])])
def test_drift_is_named_by_dataset_row_and_field_and_nothing_is_begun(place, kind, how):
    row, said = DRIFT[kind]
    write_rows(place / "drifted.jsonl", [*(chat(str(number)) for number in range(40)), row])
    (place / "drifted.yaml").write_text("name: m\ndatasets: [{path: drifted.jsonl, count: 2}]\n", encoding="utf-8")
    before = files(place)
    done = stage(place, recipe(place, mix="drifted.yaml"), *how)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert f"{place / 'drifted.jsonl'}, line 41" in done.stderr
    assert files(place) == before


def test_a_row_that_the_template_refuses_is_named_with_its_dataset(place):
    template = place / "picky"
    write_model(template, seed=1)
    refuses = "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    text = f"{{%- for m in messages %}}{refuses}{{{{ m.content }}}}{{% endfor %}}"
    (template / "chat_template.jinja").write_text(text, encoding="utf-8")
    Store.open(place / "models").add("picky", template)
    write_rows(place / "system.jsonl", [{"messages": [{"role": "system", "content": "a"}, *chat("b")["messages"]]}])
    datasets = "datasets: [{path: short.jsonl, count: 2}, {path: system.jsonl, count: 1}]\n"
    (place / "system.yaml").write_text(f"name: m\n{datasets}", encoding="utf-8")
    before = files(place)
    with pytest.raises(UsageError, match="no system") as caught:
        prune(job(place, parent="picky", mix="system.yaml"))
    assert caught.value.where.startswith("row 1 of the sample from system.jsonl: ")
    assert files(place) == before


def test_a_preflight_for_cuda_takes_no_device_memory(place, monkeypatch):
    """Nothing here could give any: whatever asked for it would fail."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_cpu, on_cuda = check(job(place, device="cpu")), check(job(place, device="cuda"))
    assert on_cuda.demand.spool * 2 == on_cpu.demand.spool, "BF16 there, float32 here"
    assert on_cuda.demand.device > 0 == on_cpu.demand.device
    assert "assumed" in on_cuda.demand.basis
    assert not torch.cuda.is_initialized()


# -------------------------------------------------------------------------------------------------------- the disk


@pytest.mark.needs("mounts")
@pytest.mark.parametrize("how", [[], ["--preflight"]], ids=["prune", "preflight"])
def test_a_disk_that_is_too_small_is_refused_before_anything_is_begun(place, tmp_path, how):
    root = tmp_path / "models"
    root.mkdir()
    words = ["--root", root, "--project", place, "--recipe", recipe(place), *how]
    script = (
        f"mount -t tmpfs -o size=80m none {root} && cd {PROJECT} && "
        f'{sys.executable} -c "from pathlib import Path; from registry.store import Store; '
        f"Store.init(Path('{root}')).add('parent', Path('{place / 'source'}'))\" && "
        f"head -c 40m /dev/zero > {root}/other && "
        f"{sys.executable} -m stages.prune {' '.join(map(str, words))}; code=$?; "
        f"ls {root}/staging {root}/candidates; exit $code"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(r"the disk is too small: child will have .* are needed at once, and .* are free", done.stderr)
    assert done.stdout.splitlines()[-4:] == [f"{root}/candidates:", "parent", "", f"{root}/staging:"]


def test_room_for_the_candidate_is_held_while_experts_are_scored(place, tmp_path):
    report = sized(check(job(place)), output=3 << 20, spool=1 << 20)
    with preflight.room(tmp_path, report):
        (held,) = tmp_path.iterdir()
        assert held.stat().st_blocks * 512 == 2 << 20
    assert not list(tmp_path.iterdir())
    with preflight.room(tmp_path, sized(report, output=1, spool=2)):
        assert sum(path.stat().st_blocks for path in tmp_path.iterdir()) == 0


def test_a_disk_that_somebody_else_has_filled_meanwhile_is_refused(place, tmp_path):
    def full(name: str, _: Any, call: Any) -> Any:
        if name == "allocate":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*_)

    report = sized(check(job(place)), output=3 << 20, spool=1 << 20)
    with faults.around(full), pytest.raises(UsageError, match="too small"), preflight.room(tmp_path, report):
        pass
    assert not list(tmp_path.iterdir())


def test_what_an_interrupted_run_left_counts_as_free(tmp_path):
    step = tmp_path / "step"
    empty = preflight.machine(tmp_path, step, "cpu").disk
    step.mkdir()
    (step / "states").write_bytes(bytes(32 << 20))
    assert abs(preflight.machine(tmp_path, step, "cpu").disk - empty) < 16 << 20


def sized(report: Report, **changes: int) -> Report:
    return replace(report, demand=replace(report.demand, **changes))


# ------------------------------------------------------------------------------------------------------ what is seen


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_people_see_a_table_and_a_bar_of_the_mix(place, monkeypatch):
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
    report = check(job(place, sequence_length=64))
    plain = preflight_view.render(report, io.StringIO())
    page = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in preflight_view.render(report, _Terminal())]
    for lines, letters in ((plain, "#="), (page, "█")):
        text = "\n".join(lines)
        assert re.search(r"short\.jsonl +6 +\d+ +\d+\.\d %", text)
        assert re.search(r"long\.jsonl +3 +192 +\d+\.\d % +3 +\d+", text)
        assert "more than half of the rows of long.jsonl are cut at 64 tokens" in text
        (bar,) = [line for line in lines if re.fullmatch(f"[{letters}]{{20,}} *", line)]
        assert len(bar.strip()) in (79, 99)
    first = report.reading.shares[0].tokens / report.reading.tokens
    (bar,) = [line for line in plain if re.fullmatch("#+=+", line)]
    assert abs(bar.count("#") / len(bar) - first) < 0.02


def test_memory_that_is_not_there_is_spoken_of_and_not_refused(place):
    report = check(job(place))
    short = replace(report, machine=replace(report.machine, host=1000))
    preflight.refuse(short)
    assert "of memory are estimated, and 1000 B are free" in next(preflight_view.warnings(short))
    assert not list(preflight.warnings(report))


@pytest.mark.parametrize("kind", ["quantize"])
def test_a_stage_without_a_preflight_says_so(place, kind):
    words = ["--root", str(place / "models"), "--preflight"]
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{kind}", *words], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"the {kind} stage has no preflight" in done.stderr


# ------------------------------------------------------------------------------------------------------- the same rows


def test_the_toys_mix_takes_these_rows_on_every_machine():
    use, _ = calibration.take("mixes/toy/broad.yaml", PROJECT)
    assert use.rows == "4146d1ab51ae8d32cde9f387719740644807bbe99b80cab8249767758f33714f"


def test_another_process_with_another_hash_seed_takes_the_same_rows():
    code = (
        "from pathlib import Path; from stages.common import calibration\n"
        "print(calibration.take('mixes/toy/broad.yaml', Path())[0].rows)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env=os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C", "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert said == {calibration.take("mixes/toy/broad.yaml", PROJECT)[0].rows}


# ------------------------------------------------------------------------------------------------------------ in time


def test_eight_datasets_of_10000_rows_are_checked_in_less_than_a_minute(place, capsys):
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(2000)]

    def rows(dataset: int) -> Iterator[str]:
        for number in range(10_000):
            text = " ".join(draw.choices(words, k=120))
            yield json.dumps(chat(f"{dataset}.{number} {text}")) + "\n"

    for dataset in range(8):
        (place / f"many{dataset}.jsonl").write_text("".join(rows(dataset)), encoding="utf-8")
    listed = "".join(f"  - {{path: many{dataset}.jsonl, count: 700}}\n" for dataset in range(8))
    (place / "many.yaml").write_text(f"name: many\ndatasets:\n{listed}", encoding="utf-8")
    begun = time.perf_counter()
    done = stage(place, recipe(place, mix="many.yaml"), "--preflight")
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n8 datasets of 10,000 rows, {found['tokens']:,} tokens of 5,600 of them: {seconds:.1f} s")  # noqa: T201
    assert seconds < 60
