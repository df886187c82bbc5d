"""The real server: both engines agree, evidence says what ran, and nothing of a server is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from registry import devices, locks
from registry.manifests import Shape
from registry.store import Store
from stages.evaluate.engines import vllm
from tests.vllm.conftest import Place, answers

pytestmark = pytest.mark.needs("vllm")


@pytest.fixture(scope="module")
def both(place: Place) -> Place:
    """The toy's evidence on both engines."""
    for engine in ("embedded", "vllm"):
        # the embedded engine computes in float32 on a CPU, so the real one is asked to
        more = {"server_flags": "{dtype: float32}"} if engine == "vllm" else {}
        done = place.evaluate(place.recipe(f"toy-{engine}", "toy", engine, **more))
        assert done.returncode == 0, done.stderr
    return place


def test_both_engines_give_the_same_answers_item_by_item(both: Place) -> None:
    embedded, vllm = (answers(both, "toy", engine) for engine in ("embedded", "vllm"))
    assert sum(map(len, embedded.values())) == 180
    differing = [
        (pack, item, embedded[pack][item], vllm[pack][item])
        for pack in embedded
        for item in embedded[pack]
        if embedded[pack][item] != vllm[pack][item]
    ]
    assert differing == []


def _amx() -> bool:
    return "amx_tile" in Path("/proc/cpuinfo").read_text()


def test_pruned_candidates_answer_alike_within_one_item_a_pack(place: Place) -> None:
    """In the checkpoint's own BF16 on one, in float32 on the other: an undecided item may fall either way."""
    _make(place)
    _evaluate_on_both(place, "v7b.prune")
    embedded, vllm = (answers(place, "v7b.prune", engine) for engine in ("embedded", "vllm"))
    assert len(embedded) == len(vllm) == 4
    for pack, said in embedded.items():
        assert sum(vllm[pack][item] != answer for item, answer in said.items()) <= 1, pack


def test_the_fp8_candidate_scores_alike_within_one_item_a_pack_where_it_can_run(place: Place) -> None:
    """Without AMX the real server cannot run FP8 experts on a CPU: then it is refused in clear words."""
    _make(place)
    if not (_amx() or Path("/dev/nvidiactl").exists()):
        done = place.evaluate(place.recipe("v7b-vllm", "v7b", "vllm"))
        assert done.returncode == 2
        assert "only with AMX" in done.stderr
        return
    _evaluate_on_both(place, "v7b")
    scores: dict[str, list[float]] = {}
    for evidence in place.store.evidence(place.store.candidate("v7b").digest).values():
        scores.setdefault(evidence.pack, []).append(evidence.totals.overall.points)
    assert len(scores) == 4
    assert all(len(points) == 2 and abs(points[0] - points[1]) <= 1 for points in scores.values()), scores


def _evaluate_on_both(place: Place, name: str) -> None:
    for engine in ("embedded", "vllm"):
        done = place.evaluate(place.recipe(f"{name}-{engine}", name, engine))
        assert done.returncode == 0, done.stderr


def _make(place: Place) -> None:
    """Prunes and quantises the toy by the demo's own recipe, in the environment that has torch."""
    python = place.project / ".venv-prune" / "bin" / "python"
    words = ["--root", place.root, "--project", place.project, "--recipe", "recipes/toy/v7b.yaml"]
    for stage in ("prune", "quantize"):
        done = subprocess.run(
            [python, "-P", "-m", f"stages.{stage}", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_evidence_states_the_version_and_the_flags_of_the_server(both: Place) -> None:
    found = both.store.evidence(both.store.candidate("toy").digest).values()
    conditions = [each.conditions for each in found if each.conditions.engine == "vllm"]
    assert len(conditions) == 4
    package = subprocess.run(
        [Path(os.environ["VLLM"]) / "bin" / "python", "-c", "import vllm; print(vllm.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    for each in conditions:
        assert each.engine_version == package.stdout.split()[-1].partition("+")[0]
        assert (each.reasoning_parser, each.tool_parser) == ("qwen3", "hermes")
        assert each.server_flags is not None
        assert each.server_flags["dtype"] == "float32"
        assert all(value is not None for value in each.model_dump().values())


def test_what_is_made_is_found_without_starting_a_server(both: Place) -> None:
    begun = time.monotonic()
    done = both.evaluate(both.recipe("toy-again", "toy", "vllm", server_flags="{dtype: float32}"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made already") == 4
    assert time.monotonic() - begun < 20


def _children_of(root: Path) -> list[str]:
    """Command lines of processes that serve something from below `root`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "vllm" in command.lower() and (str(root) in command or command.startswith("VLLM")):
            found.append(command)
    return found


def _below(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def test_killed_with_its_server_in_the_middle_of_a_pack_it_leaves_nothing_and_goes_on_to_the_same_evidence(
    both: Place, tmp_path: Path
) -> None:
    other = Place(both.project, tmp_path / "models", tmp_path)
    Store.init(other.root).add("toy", both.project / "stages" / "toy" / "checkpoint")
    recipe = other.recipe("cut-off", "toy", "vllm", packs="[toy-toolcall]", server_flags="{dtype: float32}")
    running = subprocess.Popen(other.command(recipe), env=other.environment, stderr=subprocess.DEVNULL)
    journal = _wait_for_answers(other, running)
    (front,) = [each for keeper in _below(running.pid) for each in _below(keeper)]
    assert any("EngineCore" in each for each in _children_of(other.root))
    if len(os.sched_getaffinity(0)) <= vllm.FEW_CORES:
        assert not any("Worker" in each for each in _children_of(other.root)), "it would spin beside its engine"
    for each in (running.pid, front):
        os.kill(each, signal.SIGKILL)
    killed = time.monotonic()
    while True:
        held = any(locks.held(other.store.layout.lease(name)) for name in devices.names("auto"))
        left = _children_of(other.root)
        assert held or not left, "the lease is free, and a worker is there"
        if not left:
            break
        assert time.monotonic() < killed + 5, left
        time.sleep(0.05)
    running.wait()
    answered = journal.read_text().count("\n")
    done = other.evaluate(recipe)
    assert done.returncode == 0, done.stderr
    entry = [entry for entry in other.store.log.entries() if entry.event == "evidence"][-1]
    assert 0 < answered < 60
    assert entry.about["timings"]["asked"] == 60 - answered
    assert set(_on_vllm(other)) < set(_on_vllm(both))


def _on_vllm(place: Place) -> list[str]:
    """The digests of the toy's evidence from the real server."""
    found = place.store.evidence(place.store.candidate("toy").digest)
    return [digest for digest, each in found.items() if each.conditions.engine == "vllm"]


def _wait_for_answers(place: Place, running: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and running.poll() is None:
        for journal in place.root.glob("staging/*/answers.jsonl"):
            if journal.read_text().count("\n") > 0:
                return journal
        time.sleep(0.02)
    pytest.fail("no answer was journalled")


def test_fp8_on_a_cpu_without_amx_is_refused_in_clear_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from gates.errors import UsageError
    from registry.recipes import Evaluate

    if _amx() or Path("/dev/nvidiactl").exists():
        monkeypatch.setattr(vllm, "_amx", lambda: False)
        monkeypatch.setattr(vllm, "_installed", lambda _: "0.32.0+cpu")
    shape = Shape(family="qwen3_moe", layers=4, experts=12, top_k=2, quantization="fp8-block", tensor_bytes=1)
    with pytest.raises(UsageError, match="AMX") as error:
        vllm.describe(Evaluate(packs=["any"], engine="vllm"), Path(), shape, where="a test")
    assert "engine: embedded" in str(error.value)
