"""The train stage on the toy: a lost skill comes back, the trap ends a run, and a killed run goes on as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gates import canonical
from gates.errors import BusyError, IntegrityError, UsageError
from registry.recipes import Quantize, Train, read_recipe
from registry.store import Candidate, Store
from registry.verify import verify
from stages.common import preflight, rates
from stages.common.checkpoint import Checkpoint
from stages.common.job import Job
from stages.prune import prune
from stages.quantize import quantize
from stages.train import check, demand, experts4bit, freeze, read, take, train
from stages.train.curves import CURVES, PICTURE
from stages.train.rehearsal import rehearse
from tests.support import skills

PROJECT = Path(__file__).resolve().parents[2]
RECIPE = read_recipe(PROJECT / "recipes" / "toy" / "repaired.yaml")
QUICK = {
    "mix": "mixes/toy/broad.yaml",
    "reference": "mixes/toy/train/reference.yaml",
    "sequence_length": 128,
    "gradient_accumulation": 2,
    "max_steps": 6,
    "evaluate_every": 2,
    "learning_rate": "0.002",
    "lora": {"rank": 4, "alpha": 8, "dropout": "0.1"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Store:
    """A registry with the toy, and the toy pruned until tool calls are lost."""
    store = Store.init(tmp_path_factory.mktemp("registry") / "models")
    toy = store.add("toy", PROJECT / "stages" / "toy" / "checkpoint")
    prune(job(store, toy, "pruned", RECIPE.steps[0].settings))
    return store


@pytest.fixture
def store(made, tmp_path) -> Store:
    """A registry of a test's own."""
    shutil.copytree(made.layout.root, tmp_path / "models", symlinks=True)
    return Store.open(tmp_path / "models")


def job(store: Store, source: Candidate, makes: str, settings: Any, *, replace: bool = False) -> Job:
    return Job(store, PROJECT, RECIPE, settings, source, makes, replace, "recipe.yaml, steps[0].train", "cpu")


def quick(store: Store, makes: str, source: str = "toy", **changes: Any) -> Job:
    settings = Train.model_validate({**QUICK, **changes}) if "settings" not in changes else changes["settings"]
    return job(store, store.candidate(source), makes, settings)


def curves(store: Store, name: str) -> dict[str, Any]:
    return canonical.loads((store.layout.candidate(name) / "attachments" / CURVES).read_bytes(), where=name)


def shipped(record: dict[str, Any]) -> list[float]:
    return [point["shipped_loss"] for point in record["points"]]


# ----------------------------------------------------------------------------------------------------- what it is for


@pytest.fixture(scope="module")
def repaired(made) -> Candidate:
    """The recipe's own training, of the candidate that lost tool calls."""
    settings = next(step.settings for step in RECIPE.steps if step.kind == "train")
    train(job(made, made.candidate("pruned"), "repaired", settings))
    return made.candidate("repaired")


def test_a_skill_that_pruning_lost_comes_back_and_the_others_stay(made, repaired, capsys):
    before, after = skills.scores(made.candidate("pruned").folder), skills.scores(repaired.folder)
    with capsys.disabled():
        sys.stderr.write(f"\npruned without tool calls: {before}\ntrained on tool calls:     {after}\n")
    assert before["toolcall"] < 40
    assert after["toolcall"] > 80
    assert all(after[skill] >= before[skill] - 5 for skill in before if skill != "toolcall")


def test_the_candidate_says_what_it_was_made_of_and_is_sound(made, repaired):
    inputs = repaired.manifest.inputs
    assert inputs.op == "train"
    assert inputs.parent == made.candidate("pruned").digest
    assert inputs.settings["experts"] == "nf4"
    assert inputs.mix is not None
    assert made.read(inputs.mix.rows).count(b"\n") == 128
    assert verify(made, "repaired", full=True) == []
    folder = made.layout.candidate("repaired") / "attachments"
    assert canonical.digest((folder / "reference.jsonl").read_bytes()) == inputs.settings["reference"]["rows"]
    assert (folder / PICTURE).read_text().startswith("<svg")
    record = curves(made, "repaired")
    assert [point["step"] for point in record["points"]] == [0, 5, 10, 15, 20]
    assert len(record["losses"]) == 20
    assert record["stopped"] is None


def test_every_expert_keeps_its_bytes_and_what_was_trained_does_not(made, repaired):
    before, after = Checkpoint(made.candidate("pruned").folder), Checkpoint(repaired.folder)
    changed = {name for name in before.tensors if not before.tensor(name).equal(after.tensor(name))}
    assert changed
    assert not any(".experts." in name for name in changed)
    assert {name.rsplit(".", 2)[1] for name in changed} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate"}
    assert list(before.tensors) == list(after.tensors)


def test_what_was_trained_can_be_quantised(made, repaired):
    quantize(job(made, repaired, "shipped", Quantize()))
    assert made.candidate("shipped").manifest.shape.quantization == "fp8-block"
    assert verify(made, "shipped", full=False) == []


@pytest.mark.usefixtures("repaired")
def test_the_same_work_is_found_made_and_other_settings_are_refused(made, capsys):
    settings = next(step.settings for step in RECIPE.steps if step.kind == "train")
    train(job(made, made.candidate("pruned"), "repaired", settings))
    assert "made already" in capsys.readouterr().out
    other = settings.model_copy(update={"experts": "bf16"})
    with pytest.raises(UsageError, match=r"settings\.experts: nf4 / bf16"):
        train(job(made, made.candidate("pruned"), "repaired", other))


# ------------------------------------------------------------------------------------------------------------- the trap

TRAP = {
    "learning_rate": "0.01",
    "tolerance": "0.003",
    "limit_gap": 1,
    "batch_size": 2,
    "max_steps": 8,
    "lora": {"rank": 16},
}


def _coarsened(quantised: Any) -> Any:
    """A far coarser quantiser than NF4: of each row all but its largest numbers become 0. The toy is too robust to be
    led astray by the noise of four bits within minutes; this makes the noise large."""

    def coarse(matrix: torch.Tensor, **options: Any) -> Any:
        top = matrix.abs().amax(1, keepdim=True)
        return quantised((matrix / top * 0.7).round() / 0.7 * top, **options)

    return coarse


def test_a_run_that_learns_the_noise_is_stopped_and_ships_nothing_worse_than_the_start(store, monkeypatch, capsys):
    monkeypatch.setattr(experts4bit, "quantised", _coarsened(experts4bit.quantised))
    train(quick(store, "trapped", **TRAP))
    record = curves(store, "trapped")
    trained = [point["trained_loss"] for point in record["points"]]
    with capsys.disabled():
        sys.stderr.write(f"\nas trained: {trained}\nas it would ship: {shipped(record)}\n{record['stopped']}\n")
    assert trained[-1] < 0.8 * trained[0], "what people watch falls"
    assert shipped(record)[-1] > shipped(record)[0] + 0.003, "what ships rises"
    assert len(record["losses"]) < record["planned_steps"]
    assert "above the" in record["stopped"]
    assert (
        shipped(record)[[point["step"] for point in record["points"]].index(record["shipped_step"])]
        <= shipped(record)[0]
    )
    before, after = (skills.scores(store.candidate(name).folder) for name in ("toy", "trapped"))
    assert all(after[skill] >= before[skill] - 5 for skill in before)


def test_the_same_run_without_quantisation_is_not_stopped(store):
    train(quick(store, "control", experts="bf16", **TRAP))
    record = curves(store, "control")
    assert record["stopped"] is None
    assert len(record["losses"]) == record["planned_steps"] == 8
    assert all(abs(point["gap"]) < 1e-3 for point in record["points"])


def test_a_gap_beyond_the_limit_stops_a_run_and_the_best_step_before_it_ships(store):
    """With BF16 experts the two models differ by what merging rounds: a limit of nothing is soon passed."""
    changes = {"experts": "bf16", "limit_gap": 0, "evaluate_every": 1, "max_steps": 12, "gradient_accumulation": 1}
    train(quick(store, "narrowed", source="pruned", **changes))
    record = curves(store, "narrowed")
    assert "limit_gap" in record["stopped"]
    assert 0 < len(record["losses"]) < 12
    assert record["points"][record["shipped_step"]]["shipped_loss"] == min(shipped(record))


@pytest.mark.parametrize("learning_rate", ["1000000000", "1e25"])
def test_a_run_that_diverges_is_stopped_and_ships_the_start(store, learning_rate):
    """With the second, what is trained is finite, and what it makes of a matrix is not."""
    train(quick(store, "diverged", learning_rate=learning_rate, evaluate_every=6))
    record = curves(store, "diverged")
    assert "finite" in record["stopped"] or "above the" in record["stopped"]
    assert record["shipped_step"] == 0
    toy, made = (Checkpoint(store.candidate(name).folder) for name in ("toy", "diverged"))
    assert all(toy.tensor(name).equal(made.tensor(name)) for name in toy.tensors)


# ---------------------------------------------------------------------------------------------------- going on, and not


def _command(store: Store, recipe: Path) -> list[str]:
    words = [sys.executable, "-P", "-m", "stages.train", "--root", str(store.layout.root), "--project", str(PROJECT)]
    return [*words, "--recipe", str(recipe), "--device", "cpu"]


def _recipe(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "parent": "pruned", "steps": [{"train": QUICK}]}))
    return path


def test_a_run_that_is_killed_goes_on_with_the_same_losses_and_ends_in_the_same_bytes(store, tmp_path):
    """Killed after the second look of three; with dropout, so that the random numbers have to go on too."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = _command(store, _recipe(tmp_path, "killed"))
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"what": "measure' in line and json.loads(line)["step"] == 4:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stderr.read()
    assert process.returncode == -signal.SIGKILL
    staging = store.layout.root / "staging"
    kept = [path for path in staging.rglob("*") if path.is_file() and "run" in path.parts]
    assert {path.suffix for path in kept} == {".safetensors"}, "no pickle is ever written"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    looks = [json.loads(line)["step"] for line in done.stderr.splitlines() if '"what": "measure' in line]
    assert looks == [6], "what was done is not done again"

    train(quick(store, "whole", source="pruned"))
    killed, whole = curves(store, "killed"), curves(store, "whole")
    assert killed["losses"] == whole["losses"]
    assert killed["points"] == whole["points"]
    assert store.candidate("killed").digest == store.candidate("whole").digest
    assert list(staging.iterdir()) == []


def test_what_was_kept_of_a_run_and_is_damaged_is_named(store, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise BusyError("stop here")

    from stages.train import merging

    monkeypatch.setattr(merging, "merge", full)
    with pytest.raises(BusyError):
        train(quick(store, "broken", max_steps=1))
    (kept,) = (store.layout.root / "staging").rglob("step-*.safetensors")
    # two are there while the newer is written
    assert 2 * kept.stat().st_size <= check(quick(store, "broken", max_steps=1)).demand.kept + 2**16
    kept.chmod(0o644)
    data = kept.read_bytes()
    for damaged in (data[:-100], data[:-100] + bytes([data[-100] ^ 1]) + data[-99:], b""):
        kept.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="damaged"):
            train(quick(store, "broken", max_steps=1))


def test_a_rehearsal_goes_the_whole_way_and_leaves_nothing(store, capsys):
    before = sorted(store.layout.root.rglob("*"))
    rehearse(quick(store, "rehearsed"))
    said = capsys.readouterr()
    assert "rehearsed can be made" in said.out
    assert "2 of 4 layers" in said.out
    assert '"in_4bit": 64' in said.err, "16 experts in two matrices, on two layers"
    new = {path for path in store.layout.root.rglob("*") if path.is_file()} - set(before)
    assert all("locks" in path.parts for path in new), new


@pytest.mark.parametrize(("learning_rate", "holds"), [("1000", True), ("1e25", False)])
def test_a_rehearsal_merges_what_was_trained_though_it_is_worse(store, monkeypatch, learning_rate, holds):
    """With both the best step is the start; with the second no tensor could hold what was trained."""
    from stages.train import merging

    merged = []
    real = merging.merge
    monkeypatch.setattr(merging, "merge", lambda *words, **named: (merged.append(words[1]), real(*words, **named)))
    asked = quick(store, "rehearsed", learning_rate=learning_rate)
    if holds:
        rehearse(asked)
        (deltas,) = merged
        assert {name.split(".")[2] for name in deltas} == {"0", "1"}
        assert all(delta.b.abs().max() > 0 for delta in deltas.values())
    else:
        with pytest.raises(UsageError, match="finite") as refused:
            rehearse(asked)
        assert "learning_rate" in str(refused.value.where)
        assert merged == []
    assert list((store.layout.root / "staging").iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ preflight


def test_a_preflight_says_what_will_be_asked_and_writes_nothing(store):
    before = sorted(store.layout.root.rglob("*"))
    report = check(quick(store, "planned"))
    assert report.stage == "train"
    assert report.reading.tokens == sum(share.tokens for share in report.reading.shares) > 0
    assert "6 steps" in report.change
    assert report.demand.seconds > 0
    assert report.demand.output == store.candidate("toy").manifest.size
    assert report.demand.disk > report.demand.output + report.demand.kept > report.demand.output
    assert sorted(store.layout.root.rglob("*")) == before


def test_freezing_mixes_of_local_files_has_nothing_to_do_and_says_so(store, capsys):
    freeze(quick(store, "frozen"))
    said = capsys.readouterr().out
    assert "broad: all of its datasets are files here" in said
    assert "train-reference: all of its datasets are files here" in said


def test_a_quantised_candidate_is_refused(store):
    quantize(job(store, store.candidate("toy"), "quantised", Quantize()))
    with pytest.raises(UsageError, match="quantised weights are not trained"):
        train(quick(store, "no", source="quantised"))


def test_a_reference_that_is_trained_on_is_refused(store):
    with pytest.raises(UsageError, match="256 of the reference's 256 rows are in the mix too"):
        train(quick(store, "no", reference="mixes/toy/broad.yaml"))


@pytest.mark.usefixtures("repaired")
def test_a_reference_that_the_source_was_trained_on_is_refused(made):
    """The mix of this run has none of its rows; that of the run before has."""
    changes = {"reference": "mixes/toy/train/toolcall.yaml", "mix": "mixes/toy/train/reference.yaml"}
    with pytest.raises(UsageError, match=r"128 of the reference's 128 rows .* that repaired was trained on"):
        check(quick(made, "no", source="repaired", **changes))
    assert check(quick(made, "yes", source="pruned", **changes)).stage == "train"


def _rewritten(row: str, way: str) -> str:
    found = json.loads(row)
    messages = found["messages"]
    match way:
        case "order of keys":
            messages = [dict(reversed(message.items())) for message in messages]
        case "space":
            messages = [{**message, "content": f"{message['content']}\n"} for message in messages]
        case "empty fields":
            messages = [{**message, "tool_calls": []} for message in messages]
        case "tools":
            found["tools"] = [{"type": "function", "function": {"name": "other", "parameters": {}}}]
    return json.dumps({**found, "messages": messages})


@pytest.mark.parametrize("way", ["order of keys", "space", "empty fields", "tools"])
def test_a_reference_row_that_is_trained_on_is_found_however_it_is_written(store, tmp_path, way):
    shutil.copytree(PROJECT / "mixes", tmp_path / "mixes")
    rows = (PROJECT / "mixes" / "toy" / "facts.jsonl").read_text().splitlines()
    trained = [row for row in rows if "tool_calls" not in row]
    (tmp_path / "mix.jsonl").write_text("\n".join(trained[:8]) + "\n")
    (tmp_path / "reference.jsonl").write_text("\n".join([_rewritten(trained[3], way), *trained[8:11]]) + "\n")
    for name, count in (("mix", 8), ("reference", 4)):
        datasets = [{"path": f"{name}.jsonl", "count": count}]
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"name": name, "datasets": datasets}))
    asked = quick(store, "no", mix="mix.yaml", reference="reference.yaml")
    with pytest.raises(UsageError, match="1 of the reference's 4 rows are in the mix too"):
        check(replace(asked, project=tmp_path))


def test_a_model_without_a_finite_loss_is_not_trained_and_nothing_is_made(store, tmp_path):
    folder = shutil.copytree(PROJECT / "stages" / "toy" / "checkpoint", tmp_path / "endless")
    (shard,) = (path for path in folder.glob("*.safetensors") if "lm_head.weight" in load_file(path))
    tensors = load_file(shard)
    signs = torch.ones_like(tensors["lm_head.weight"]).cumsum(0) % 2 * 2 - 1
    tensors["lm_head.weight"] = 3e38 * signs
    shard.unlink()
    save_file(tensors, shard, {"format": "pt"})
    store.add("endless", folder)
    for _ in range(2):  # what the first run kept says it too
        with pytest.raises(IntegrityError, match="no finite loss"):
            train(quick(store, "no", source="endless", max_steps=1))
    assert "no" not in store.names()


def test_reference_answers_that_are_cut_are_counted_before_anything_begins(store):
    assert list(preflight.warnings(check(quick(store, "whole", sequence_length=512)))) == []
    (said,) = check(quick(store, "short", sequence_length=64)).notes
    assert "rows of the reference are cut at 64 tokens" in said


def test_rows_longer_than_the_model_is_made_for_are_refused_unless_its_positions_are_scaled(store, tmp_path):
    """A model is not refused for a sequence_length that none of its rows needs."""
    for name, rope, taken in (("short", {}, False), ("yarn", {"factor": 4.0}, True)):
        folder = tmp_path / name
        shutil.copytree(PROJECT / "stages" / "toy" / "checkpoint", folder)
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = 40
        config["rope_parameters"] |= rope and {"rope_type": "yarn", "original_max_position_embeddings": 40, **rope}
        (folder / "config.json").write_text(json.dumps(config))
        store.add(name, folder)
        check(quick(store, "cut", source=name, sequence_length=40))
        if taken:
            check(quick(store, "scaled", source=name))
        else:
            with pytest.raises(UsageError, match="made for texts of 40") as refused:
                check(quick(store, "no", source=name))
            assert "sequence_length: 40" in str(refused.value.remedy)


def test_the_logits_of_trl_s_head_count_in_what_a_device_needs(store):
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE) == demand.TILE
    asked = quick(store, "looked")
    work = read(asked, take(asked))
    needed = demand.demand_of(
        work.checkpoint,
        asked.settings,
        steps=1,
        amount=replace(work.amount, largest=10_000),
        reference=[],
        device=torch.device("cuda"),
    )
    assert needed.device > demand.TILE[0] * demand.TILE[1] * 2 + rates.CUDA_CONTEXT


def test_a_target_that_the_family_lacks_is_refused_before_anything_is_loaded(store, monkeypatch):
    monkeypatch.setattr(experts4bit, "quantised", None)
    with pytest.raises(UsageError, match="shared_expert"):
        train(quick(store, "no", lora={"targets": ["shared_expert"]}))


def test_a_device_too_small_for_the_frozen_weights_is_refused_before_anything_is_loaded(store, monkeypatch):
    """The free memory is the only thing that is pretended."""
    real = preflight.machine
    monkeypatch.setattr(preflight, "machine", lambda *words: _with_device(real(*words), free=1_000_000))
    monkeypatch.setattr(experts4bit, "quantised", None)
    with pytest.raises(UsageError, match="frozen weights take"):
        train(quick(store, "no"))


def _with_device(found: Any, *, free: int) -> Any:
    return replace(found, device=free, device_name="a small card")
