"""What `registry run` does with steps, whatever the stages do: their order, their lines, their ends."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import UsageError
from registry import generations, output, promotion
from registry.commands.running import table
from registry.judging import read_policy
from registry.recipes import read_recipe
from registry.running import Outcome, checks, planned, records, run, summary
from registry.running.containers import _agree
from registry.running.lines import Lines
from registry.running.local import Processes
from registry.running.plan import KINDS, Task, tasks
from registry.running.view import amount, duration, told
from registry.store import Store
from tests.support import stores

RECIPE = """\
name: mine
parent: base
steps:
  - evaluate: {packs: [sums]}
  - prune: {compression: 0.5, mix: mixes/near.yaml}
  - gate: {policy: policies/floor.yaml}
  - promote: {channel: best}
"""
NEAR = "name: near\ndatasets:\n  - {path: rows.jsonl, count: 1}\n"
FAR = "name: far\ndatasets:\n  - {hub: org/rows, count: 1}\n"

FIRST_LINES = "import os, signal, subprocess, sys, time\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.init(tmp_path / "models")
    stores.add(store, "base", tmp_path / "sources")
    return store


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a recipe and what it names, and environments that can run the stages which `stage` writes."""
    folder = tmp_path / "project"
    for name in ("mixes", "packs", "policies", "recipes", "stages"):
        (folder / name).mkdir(parents=True)
    (folder / "mixes" / "near.yaml").write_text(NEAR)
    (folder / "mixes" / "far.yaml").write_text(FAR)
    (folder / "rows.jsonl").write_text('{"messages": []}\n')
    (folder / "packs" / "sums.yaml").write_text(
        "name: sums\ndescription: Sums.\ngrader: exact-text\nitems: packs/sums.jsonl\nmax_tokens: 8\n"
    )
    stores.write_policy(folder / "policies" / "floor.yaml")
    (folder / "recipes" / "mine.yaml").write_text(RECIPE)
    return folder


def stage(project: Path, kind: str, program: str) -> None:
    """A stage that misbehaves as none of ours does."""
    python = project / KINDS[kind].environment / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        python.write_text(f'#!/bin/sh\nPYTHONPATH={project} exec python3 "$@"\n')
        python.chmod(0o755)
    (project / "stages" / f"{kind}.py").write_text(FIRST_LINES + program)


def task(project: Path, number: int = 1) -> Task:
    return Task(path=PurePosixPath("recipes/mine.yaml"), recipe=recipe(project), number=number)


def recipe(project: Path):
    return read_recipe(project / "recipes" / "mine.yaml")


def ran(project: Path, kind: str, program: str) -> tuple[int, list[str]]:
    said: list[str] = []
    stage(project, kind, program)
    number = {"evaluate": 0, "prune": 1}[kind]
    return Processes(project / "models", project).run(task(project, number), [], said.append), said


def interrupted_after(condition: Callable[[], bool]) -> threading.Thread:
    """Sends Ctrl-C to this process once, as soon as `condition` holds."""

    def watch() -> None:
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\r")), cuts=st.lists(st.integers(0, 40)))
def test_lines_are_the_same_however_their_bytes_arrive(text, cuts):
    data, said = text.encode(), []
    lines = Lines(said.append)
    for size in cuts:
        lines.feed(data[:size])
        data = data[size:]
    lines.feed(data)
    lines.end()
    assert said == text.removesuffix("\n").split("\n") if text else said == []


def test_of_a_line_that_is_written_over_and_over_the_last_state_is_told():
    said: list[str] = []
    lines = Lines(said.append)
    lines.feed(b"  10%\r  50%\r 100%\ndone\r\n")
    assert said == [" 100%", "done"]


def test_a_line_that_never_ends_fills_no_memory():
    said: list[str] = []
    lines = Lines(said.append)
    for _ in range(40):
        lines.feed(b"x" * 100_000)
    assert len(said) >= 2
    assert max(map(len, said)) < 2_000_000


def test_a_mix_of_the_hub_is_fetched_right_before_its_step(project):
    assert [each.title for each in tasks(PurePosixPath("r.yaml"), recipe(project), frozenset({1}))] == [
        "mine: evaluate (1 of 4)",
        "mine: fetch the mix of prune (2 of 4)",
        "mine: prune (2 of 4)",
        "mine: gate (3 of 4)",
        "mine: promote (4 of 4)",
    ]
    path = Path("recipes/mine.yaml")
    assert checks.networked(project, path, recipe(project)) == set()
    (project / path).write_text(RECIPE.replace("near", "far"))
    assert checks.networked(project, path, recipe(project)) == {1}


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("mixes/near.yaml", ["step 2 (prune)", "mixes/near.yaml"]),
        ("rows.jsonl", ["step 2 (prune)", "mixes/near.yaml: rows.jsonl"]),
        ("packs/sums.yaml", ["step 1 (evaluate)", "packs/sums.yaml"]),
        ("policies/floor.yaml", ["step 3 (gate)", "policies/floor.yaml"]),
        (".venv-prune/bin/python", [".venv-prune", "make envs"]),
    ],
)
def test_what_a_recipe_names_and_is_not_there_is_said_before_anything_starts(store, project, lost, words):
    stage(project, "evaluate", "open('started', 'w')")
    stage(project, "prune", "")
    (project / lost).unlink()
    with pytest.raises(UsageError) as caught:
        run(store.layout.root, project, [Path("recipes/mine.yaml")], where="local")
    for word in words:
        assert word in str(caught.value)
    assert not Path("started").exists()


def test_a_recipe_that_only_one_step_could_read_is_refused_before_anything_starts(store, project):
    os.mkfifo(project / "recipes" / "pipe")
    with pytest.raises(UsageError, match="a pipe is read once"):
        planned(store.layout.root, project, [Path("recipes/pipe")])


def test_a_public_set_that_was_not_fetched_is_named_before_anything_starts(store, project):
    (project / "packs" / "sums.yaml").write_text(
        "name: sums\ndescription: Sums.\ngrader: number\ndataset: {hub: a/b, format: gsm8k}\nmax_tokens: 8\n"
    )
    stage(project, "evaluate", "open('started', 'w')")
    stage(project, "prune", "")
    with pytest.raises(UsageError, match=r"step 1 \(evaluate\)") as caught:
        run(store.layout.root, project, [Path("recipes/mine.yaml")], where="local")
    assert "registry pack fetch sums" in str(caught.value)
    assert not Path("started").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("floor.yaml}", "floor.yaml, baseline: nobody}"), ["step 3 (gate)", "nobody"]),
        (("floor.yaml", "drop.yaml"), ["step 3 (gate)", "compares with a baseline", "baseline: base"]),
        (("channel: best", "channel: base"), ["step 4 (promote)", "base is a candidate"]),
        (("channel: best", "channel: mine"), ["step 4 (promote)", "mine is a candidate"]),
        (("floor.yaml", "other.yaml"), ["step 4 (promote)", "bound to the policy floor"]),
    ],
)
def test_a_baseline_or_a_channel_that_cannot_be_is_said_before_anything_starts(store, project, change, words):
    stage(project, "evaluate", "open('started', 'w')")
    stage(project, "prune", "")
    stores.observe(store, "base", right=9)
    records.done(store, project, Task(path=PurePosixPath("r"), recipe=_gated(project), number=0))
    records.done(store, project, Task(path=PurePosixPath("r"), recipe=_gated(project), number=1))
    policy = (project / "policies" / "floor.yaml").read_text()
    (project / "policies" / "other.yaml").write_text(policy.replace("name: floor", "name: other"))
    dropping = policy.replace("floor: ", "drop: ").replace("at_least", "at_most").replace("name: floor", "name: drop")
    (project / "policies" / "drop.yaml").write_text(dropping)
    (project / "recipes" / "mine.yaml").write_text(RECIPE.replace(*change))
    for attempt in (run, planned):
        with pytest.raises(UsageError) as caught:
            attempt(store.layout.root, project, [Path("recipes/mine.yaml")], where="local")
        for word in words:
            assert word in str(caught.value)
    assert not Path("started").exists()


def _gated(project: Path):
    """The parent as it is, promoted to best."""
    path = project / "recipes" / "gated.yaml"
    path.write_text("name: base\nparent: base\nsteps:\n  - gate: {policy: policies/floor.yaml}\n  - promote: {}\n")
    return read_recipe(path)


def test_two_recipes_make_one_name_only_from_the_same_steps(store, project):
    stage(project, "evaluate", "")
    stage(project, "prune", "")
    other = project / "recipes" / "other.yaml"
    paths = [Path("recipes/mine.yaml"), Path("recipes/other.yaml")]
    other.write_text(RECIPE.replace("  - evaluate: {packs: [sums]}\n", ""))
    assert len(planned(store.layout.root, project, paths, where="local", replace=True)) == 7
    other.write_text(RECIPE.replace("0.5", "0.25"))
    with pytest.raises(UsageError, match="this makes mine, as recipes/mine") as caught:
        planned(store.layout.root, project, paths, where="local", replace=True)
    assert "recipes/other.yaml, step 2" in str(caught.value)


def test_the_token_is_given_to_what_fetches_alone(project, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    stage(project, "prune", "print(os.environ.get('HF_TOKEN'))")
    for freezes, seen in ((True, "hf_nobodys"), (False, "None")):
        said: list[str] = []
        it = Task(path=PurePosixPath("recipes/mine.yaml"), recipe=recipe(project), number=1, freezes=freezes)
        Processes(project / "models", project).run(it, [], said.append)
        assert said == [seen]


@pytest.mark.parametrize("named", ["in the recipe", "in the environment"])
def test_a_vllm_that_is_not_there_is_said_before_anything_starts(store, project, monkeypatch, named):
    monkeypatch.setenv("VLLM", str(project / "nowhere"))
    for kind in ("prune", "evaluate"):
        stage(project, kind, "")
    path = project / "recipes" / "mine.yaml"
    if named == "in the recipe":
        path.write_text(RECIPE.replace("[sums]", "[sums], engine: vllm"))
    else:
        monkeypatch.setenv("SLUICE_ENGINE", "vllm")
    with pytest.raises(UsageError, match="vLLM is not there") as caught:
        run(store.layout.root, project, [Path("recipes/mine.yaml")], where="local")
    assert f"recipes/mine.yaml, step 1 (evaluate): {project}/nowhere/bin/vllm" in str(caught.value)
    monkeypatch.setenv("SLUICE_ENGINE", "embedded")
    path.write_text(RECIPE)
    assert len(planned(store.layout.root, project, [Path("recipes/mine.yaml")], where="local")) == 4


def test_a_mix_is_read_before_the_first_step_even_where_the_model_that_reads_it_is_still_to_be_made(store, project):
    asked = project / "asked"
    for kind in ("prune", "train"):
        stage(project, kind, f"print(*sys.argv[4:], file=open({str(asked)!r}, 'a')); sys.exit(2)")
    prune, train = (
        "prune: {compression: 0.5, mix: mixes/near.yaml}",
        "train: {mix: mixes/%s.yaml, reference: rows.jsonl}",
    )
    recipes = {"mine": ("base", prune, train % "far"), "then": ("mine", train % "near")}
    for name, (parent, *steps) in recipes.items():
        text = f"name: {name}\nparent: {parent}\nsteps:\n" + "".join(f"  - {each}\n" for each in steps)
        (project / "recipes" / f"{name}.yaml").write_text(text)
    with pytest.raises(UsageError, match="nothing has been begun") as caught:
        run(store.layout.root, project, [Path(f"recipes/{name}.yaml") for name in recipes], where="local")
    assert asked.read_text().splitlines() == [
        f"{project} --recipe recipes/{name}.yaml --step {step} --candidate base --freeze"
        for name, step in (("mine", 2), ("then", 1))
    ]
    for where in ("recipes/mine.yaml, step 2 (train)", "recipes/then.yaml, step 1 (train)"):
        assert where in str(caught.value)


def test_an_evaluation_is_looked_at_before_what_it_waits_for_is_made_and_one_like_another_once(store, project):
    asked = project / "asked"
    for kind, code in (("prune", 0), ("evaluate", 4)):
        stage(project, kind, f"print(*sys.argv[4:], file=open({str(asked)!r}, 'a')); sys.exit({code})")
    steps = ["prune: {compression: 0.5, mix: mixes/near.yaml}", "evaluate: {packs: [sums]}", "quantize: {}"]
    steps += ["evaluate: {packs: [sums]}", "evaluate: {packs: [sums], thinking: false}"]
    text = "name: mine\nparent: base\nsteps:\n" + "".join(f"  - {each}\n" for each in steps)
    (project / "recipes" / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match="nothing has been begun") as caught:
        run(store.layout.root, project, [Path("recipes/mine.yaml")], where="local")
    looks = [f"{project} --recipe recipes/mine.yaml --step {step} --candidate base --preflight" for step in (2, 5)]
    assert asked.read_text().splitlines() == looks
    assert "recipes/mine.yaml, step 5 (evaluate)" in str(caught.value)


def test_an_unknown_parent_is_named_before_anything_starts(store, project):
    (project / "recipes" / "mine.yaml").write_text(RECIPE.replace("parent: base", "parent: nobody"))
    stage(project, "evaluate", "")
    stage(project, "prune", "")
    with pytest.raises(UsageError, match="nobody"):
        run(store.layout.root, project, [Path("recipes/mine.yaml")], where="local")


def test_the_plan_says_what_would_run_and_starts_and_writes_nothing(store, project):
    stage(project, "evaluate", "open('started', 'w')")
    stage(project, "prune", "open('started', 'w')")
    before = sorted(store.layout.root.rglob("*"))
    plan = planned(store.layout.root, project, [Path("recipes/mine.yaml")], where="local", replace=True)
    assert [each["kind"] for each in plan] == ["evaluate", "prune", "gate", "promote"]
    assert plan[1]["command"][-5:] == ["--recipe", "recipes/mine.yaml", "--step", "2", "--replace"]
    assert sorted(store.layout.root.rglob("*")) == before
    assert not Path("started").exists()


@pytest.mark.parametrize(
    ("program", "code", "reason"),
    [
        ("sys.exit(5)", 5, "ended with exit code 5"),
        ("raise RuntimeError('a bug')", 2, "broke off with exit code 1"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 2, "was killed"),
        ("os.abort()", 2, "broke off with exit code 134"),
    ],
)
def test_a_stage_that_fails_ends_its_recipe_and_not_the_next(store, project, program, code, reason, capsys):
    """And never with 1, which says that a gate failed."""
    stage(project, "prune", "")
    stage(project, "evaluate", f"print('on its way')\nif 'bad.yaml' in ' '.join(sys.argv): {program}")
    (project / "recipes" / "bad.yaml").write_text(RECIPE.replace("mine", "bad"))
    evaluate_alone = "\n".join(RECIPE.splitlines()[:4]) + "\n"
    (project / "recipes" / "good.yaml").write_text(evaluate_alone.replace("mine", "good"))
    names = ["recipes/bad.yaml", "recipes/good.yaml"]
    outcomes = run(store.layout.root, project, [Path(name) for name in names], where="local")
    assert [(each.recipe, each.code) for each in outcomes] == [("bad", code), ("good", 0)]
    assert reason in outcomes[0].reason
    assert summary(outcomes) == code
    assert capsys.readouterr().err.count("on its way") == 2


def test_what_needs_a_candidate_that_a_recipe_before_did_not_make_is_not_begun(store, project, capsys):
    """Not even where another has its name: it is not what was asked for."""
    stores.add(store, "first", project.parent / "sources", seed=1)
    recipes = {
        "first": "parent: base\nsteps: [{quantize: {}}]",
        "second": "parent: first\nsteps: [{quantize: {}}]",
        "third": "parent: second\nsteps: [{quantize: {}}]",
        "judged": "parent: base\nsteps: [{gate: {policy: policies/floor.yaml, baseline: first}}]",
        "alone": "parent: base\nsteps: [{quantize: {}}]",
    }
    for name, rest in recipes.items():
        made = "base" if name == "judged" else name
        (project / "recipes" / f"{name}.yaml").write_text(f"name: {made}\n{rest}\n")
    stage(project, "quantize", "print('started', sys.argv)\nsys.exit(5 if 'recipes/first.yaml' in sys.argv else 0)")
    outcomes = run(store.layout.root, project, [Path(f"recipes/{name}.yaml") for name in recipes], where="local")
    assert [each.code for each in outcomes] == [5, 2, 2, 2, 0]
    told = "{} was not made: the recipe that makes it failed before"
    assert [each.reason for each in outcomes[1:4]] == [told.format(name) for name in ("first", "second", "first")]
    assert capsys.readouterr().err.count("started") == 2


def test_what_a_stage_leaves_behind_does_not_keep_its_end_from_being_seen(project):
    begun = time.monotonic()
    code, said = ran(project, "evaluate", "print('it')\nsubprocess.Popen(['sleep', '60'])\nsys.exit(3)")
    assert (code, said) == (3, ["it"])
    assert time.monotonic() - begun < 10


def test_a_stage_that_closes_its_output_is_waited_for(project):
    program = "print('bye', flush=True)\nos.close(1); os.close(2)\ntime.sleep(1.2)\nos._exit(4)"
    assert ran(project, "prune", program) == (4, ["bye"])


def test_ctrl_c_ends_the_stage_once_and_shows_its_last_words(project, tmp_path):
    program = (
        f"signal.signal(signal.SIGTERM, lambda *_: (print('told to end'), sys.exit(130)))\n"
        f"print('ready', flush=True)\nopen({str(tmp_path / 'ready')!r}, 'w')\ntime.sleep(60)"
    )
    stage(project, "prune", program)
    said: list[str] = []
    watch = interrupted_after((tmp_path / "ready").exists)
    with pytest.raises(KeyboardInterrupt):
        Processes(project / "models", project).run(task(project), [], said.append)
    watch.join()
    assert said == ["ready", "ending this step …", "told to end"]


@pytest.mark.parametrize("how", ["closed", "Ctrl-C twice"])
def test_whoever_leaves_the_terminal_finds_no_stage_left_and_no_gate_failed(store, project, how):
    """A terminal that is closed takes nothing more, from this process or a bar's thread."""
    stage(project, "evaluate", "print('ready', flush=True)\ntime.sleep(60)")
    stage(project, "prune", "")
    words = ["run", "--local", "--root", str(store.layout.root), "--project", str(project), "recipes/mine.yaml"]
    terminal, theirs = os.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "registry", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1 << 16)
    if how == "closed":
        os.close(terminal)
    else:
        os.write(terminal, b"\x03\x03")
    assert running.wait(20) == output.INTERRUPTED
    done = subprocess.run(["pgrep", "--full", str(store.layout.root)], capture_output=True)
    assert done.stdout == b""
    if how != "closed":
        os.close(terminal)


def test_in_a_container_it_is_no_missing_environment_that_is_told(store, project, monkeypatch, capsys):
    monkeypatch.setenv("SLUICE_MODELS", "./models")
    monkeypatch.setenv("SLUICE_ROOT", "/models")
    with pytest.raises(UsageError, match="neither an engine nor the environments") as caught:
        planned(store.layout.root, project, [Path("recipes/mine.yaml")])
    assert "outside of containers" in str(caught.value)
    assert capsys.readouterr().err == "", "that there is no engine is not said on the way"


def test_the_verifier_less_flag_is_for_evaluations_on_this_machine_alone(store, project):
    stage(project, "evaluate", "")
    stage(project, "prune", "")
    plan = planned(store.layout.root, project, [Path("recipes/mine.yaml")], unsafe=True)
    flagged = [each["kind"] for each in plan if "--unsafe-local-execution" in each.get("command", [])]
    assert flagged == ["evaluate"]
    with pytest.raises(UsageError, match="--local"):
        planned(store.layout.root, project, [Path("recipes/mine.yaml")], where="containers", unsafe=True)


def test_a_recipe_promotes_what_passed_and_does_not_put_back_what_was_replaced(store, project, tmp_path):
    policy = project / "policies" / "floor.yaml"
    text = "name: {name}\nparent: {name}\nsteps:\n  - gate: {{policy: policies/floor.yaml}}\n  - promote: {{}}\n"
    stores.add(store, "other", tmp_path / "sources", seed=1)
    for name in ("base", "other"):
        (project / "recipes" / f"{name}.yaml").write_text(text.format(name=name))
        stores.observe(store, name, right=9)

    def end_of(name: str) -> Outcome:
        return run(store.layout.root, project, [Path(f"recipes/{name}.yaml")], where="local")[0]

    assert end_of("base").reason == "best → base (generation 1)"
    assert end_of("base").reason == "best → base (generation 1)", "found promoted"
    assert end_of("other").reason == "best → other (generation 2)"
    again = end_of("base")
    assert (again.code, again.verdict) == (0, "Pass")
    assert "best stays with other" in again.reason
    assert "registry promote base" in again.reason
    assert generations.served(store.layout) == {"best": "other"}
    promotion.rollback(store)
    assert end_of("base").reason == "best → base (generation 3)"
    stores.observe(store, "base", right=0)
    failed = end_of("base")
    assert (failed.code, failed.verdict) == (1, "FailToolcall")
    assert read_policy(policy).name == "floor"


def test_a_candidate_that_was_not_judged_has_no_verdict_of_the_one_before(store, project):
    (project / "recipes" / "cut.yaml").write_text(
        "name: cut\nparent: base\nsteps:\n  - gate: {policy: policies/floor.yaml}\n  - quantize: {}\n"
    )
    stores.observe(store, "base", right=9)
    stage(project, "quantize", "sys.exit(5)")
    (end,) = run(store.layout.root, project, [Path("recipes/cut.yaml")], where="local")
    assert (end.candidate, end.verdict, end.code) == ("cut", None, 5)


def test_what_is_there_already_is_told_for_every_kind_of_step(store, project):
    text = RECIPE.replace("sums", stores.PACK).replace("name: mine\nparent: base", "name: new\nparent: base")
    text = "\n".join(line for line in text.splitlines() if "prune" not in line) + "\n"
    (project / "recipes" / "mine.yaml").write_text(text)
    steps = tasks(PurePosixPath("recipes/mine.yaml"), recipe(project), frozenset())
    assert [records.there(store, project, each) for each in steps] == [None, None, None]
    stores.observe(store, "base", right=9)
    for each in steps[1:]:
        records.done(store, project, each)
    assert [records.there(store, project, each) for each in steps] == [
        f"evidence on {stores.PACK}",
        "Pass",
        "best serves it",
    ]


def test_a_promotion_needs_a_gate_on_the_same_candidate(project):
    text = RECIPE.replace("  - gate: {policy: policies/floor.yaml}\n", "")
    (project / "recipes" / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match="a gate has to judge mine before"):
        recipe(project)
    before = "  - gate: {policy: policies/floor.yaml}\n  - prune:"
    (project / "recipes" / "mine.yaml").write_text(text.replace("  - prune:", before))
    with pytest.raises(UsageError, match="a gate has to judge mine before"):
        recipe(project)


def test_the_table_has_a_line_a_recipe_and_lines_up():
    outcomes = [Outcome("a", "a.prune", "FailToolcall", 1, "FailToolcall"), Outcome("longer", "x", None, 0, "done")]
    assert table(outcomes) == [
        "recipe  candidate  verdict       end",
        "a       a.prune    FailToolcall  FailToolcall",
        "longer  x          -             done",
    ]
    assert summary(outcomes) == 1


def test_an_error_weighs_more_than_a_failed_gate():
    ends = [Outcome("a", "a", None, code, "") for code in (0, 1, 3, 5)]
    assert [summary(ends[:count]) for count in range(5)] == [0, 0, 1, 3, 5]


def test_progress_is_told_beside_the_bar_with_its_unit_and_what_is_left():
    line = {"what": "prune a", "unit": "layers", "total": 40, "done": 10.0, "left": 7200, "note": "layer 9"}
    assert amount(line) == "10/40 layers, 2.0 h left  layer 9"
    assert amount({"what": "add a", "unit": "B", "total": 2**30, "done": 2.0**29}) == "512.0 MiB of 1.0 GiB"
    assert [duration(seconds) for seconds in (3, 89, 90, 5399, 5400)] == ["3 s", "89 s", "2 min", "90 min", "1.5 h"]


def test_a_preflight_is_told_in_a_line_and_its_warnings():
    report = json.loads('{"what": "preflight a", "change": "12 of 16 experts stay", "warnings": ["memory is short"]}')
    assert told(report) == ["preflight a: 12 of 16 experts stay", "warning: memory is short"]


def test_a_registry_that_nobody_chose_gives_way_to_the_one_of_env(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="another registry") as caught:
        _agree(tmp_path / "models", tmp_path / "big", tmp_path)
    assert f"--root {tmp_path / 'big'}" in str(caught.value)


def test_a_registry_that_somebody_chose_is_worked_in_and_the_other_one_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _agree(tmp_path / "chosen", tmp_path / "big", tmp_path)
    assert str(tmp_path / "big") in capsys.readouterr().err


def test_nothing_is_said_where_compose_was_told_of_no_other_registry(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "chosen")
    _agree(tmp_path / "chosen", tmp_path / "models", tmp_path)
    _agree(tmp_path / "models", tmp_path / "models", tmp_path)
    _agree(tmp_path / "chosen", tmp_path / "link", tmp_path)
    assert capsys.readouterr().err == ""
