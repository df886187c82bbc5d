"""`registry ls` reads plain JSON, without the records' classes. It says what they say, and mends what they would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gates import canonical
from gates.evidence import pools
from gates.policy import Policy, parse_policy
from gates.records import Conditions, Evidence, Score, Totals
from gates.reports import KINDS
from gates.standing import worst
from registry import channels, commits, fs, generations, judging, overview, promotion, retractions, settled, trash
from registry.__main__ import plain_ls
from registry.cli import app
from registry.layout import numbered
from registry.manifests import Inputs, MixUse
from registry.overview import Line
from registry.store import Store
from tests.support import scores, stores

POLICIES = [
    parse_policy(
        f"name: floor-{least}\ngates:\n  - name: T\n    rules:\n      - floor: {{pack: a, at_least: {least}}}\n", "p"
    )
    for least in (30, 70)
]
NAMES = ("base", "pruned", "twice")

TOTALS = {"overall": {"points": 1, "of": 2, "items": 2}, "categories": {}, "missing": 0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A model, a prune of it and a prune of that."""
    folder = tmp_path_factory.mktemp("prepared")
    store = Store.init(folder / "models")
    parent = stores.add(store, "base", folder)
    for name, compression in (("pruned", "0.25"), ("twice", "0.5")):
        mix = MixUse(name=f"mix-{name}", rows=store.put(name.encode()), datasets=())
        settings = {"compression": compression}
        inputs = Inputs(op="prune", parent=parent.digest, settings=settings, mix=mix, seed=0, code="t")
        parent = commits.assemble(store, name, inputs, parent.manifest.files)
    return store


@pytest.fixture
def store(prepared: Store, memory_path: Path) -> Store:
    """A copy of it, to be written to."""
    return _copied(prepared, memory_path / "models")


def _copied(store: Store, root: Path) -> Store:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(store.layout.root, root, symlinks=True)
    return Store.open(root)


_CONDITIONS = st.one_of(
    st.just(scores.KNOWN),
    st.just({**scores.KNOWN, "thinking": "off"}),
    st.sampled_from([{}, {"engine": "vllm"}, {"engine": "vllm", "sampling": {"top_p": 0.95}, "later": 1}]),
)
_EVIDENCE = st.tuples(
    st.just("observe"),
    st.sampled_from(NAMES),
    st.sampled_from("ab"),
    _CONDITIONS,
    st.sampled_from([None, b'{"rows":1}\n', b'{"rows":2}\n']),
    st.sampled_from([(0.0, 0.0, 0), (0.1, 0.3, 3), (84.9, 100.0, 15), (1.0, 1.0, 1), (7.0, 1e15, 9)]),
    st.sampled_from([0, 0, 2]),
)
_JUDGE = st.tuples(st.just("judge"), st.sampled_from(NAMES), st.sampled_from(POLICIES), st.sampled_from([None, *NAMES]))
_RETRACT = st.tuples(st.just("retract"), st.sampled_from(NAMES), st.integers(0, 9))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.one_of(_EVIDENCE, _EVIDENCE, _JUDGE, _RETRACT), max_size=10))
def test_what_is_listed_is_what_the_records_say(prepared: Store, memory_path: Path, work: list[tuple]):
    store = _copied(prepared, memory_path / "models")
    for what, *about in work:
        {"observe": _observe, "judge": _judge, "retract": _retract}[what](store, *about)
    assert overview.lines(store.layout) == [_said(store, name) for name in NAMES]


def _observe(store: Store, name: str, pack: str, known: dict, rows: bytes | None, points: tuple, missing: int) -> None:
    evidence = Evidence(
        candidate=store.candidate(name).digest,
        pack=pack,
        repeats=1,
        conditions=Conditions(**known),
        totals=Totals(overall=Score(points=points[0], of=points[1], items=points[2]), categories={}, missing=missing),
        rows=canonical.digest(rows) if rows else None,
    )
    store.add_evidence(evidence, rows=rows or b"", responses=b"", timings={})


def _judge(store: Store, name: str, policy: Policy, baseline: str | None) -> None:
    judging.judge(store, name, policy=policy, baseline=baseline)


def _retract(store: Store, name: str, number: int) -> None:
    digests = store.evidence_digests(store.candidate(name).digest)
    if digests:
        retractions.retract(store, digests[number % len(digests)], "wrong")


def _said(store: Store, name: str) -> Line:
    """What the records' own classes make of a candidate."""
    candidate = store.candidate(name)
    inputs, shape = candidate.manifest.inputs, candidate.manifest.shape
    standing = retractions.standing(store, candidate.digest)
    percents = {
        pack: tuple(float(pool.overall.percent) for pool in by_key.values() if pool.overall.of)
        for pack, by_key in pools(standing).items()
    }
    recorded = list(store.verdicts(candidate.digest).values())
    current = [
        each
        for each in recorded
        if set(each.evidence) == standing.keys()
        and set(each.baseline_evidence) == (retractions.standing(store, each.baseline) if each.baseline else {}).keys()
    ]
    told = [worst(each for each in current if each.policy == policy.identity()) for policy in POLICIES]
    told = sorted((each for each in told if each), key=lambda each: each.policy)
    return Line(
        name=name,
        channels=(),
        digest=candidate.digest,
        op=inputs.op,
        mix=inputs.mix.name if inputs.mix else None,
        compression=inputs.settings.get("compression"),
        experts=shape.experts,
        quantization=shape.quantization,
        scores={pack: values for pack, values in percents.items() if values},
        verdict=", ".join(dict.fromkeys(each.verdict for each in told)) or ("stale" if recorded else None),
        size=candidate.manifest.size,
    )


def test_listing_needs_neither_typer_nor_the_records_classes(store: Store):
    _observe(store, "pruned", "a", {}, None, (84.9, 100.0, 15), 0)
    _judge(store, "pruned", POLICIES[0], None)
    promotion.promote(store, "pruned", policy=POLICIES[0])
    script = "import atexit, runpy, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); " + (
        "sys.argv[1:] = ['ls', '--json']; runpy.run_module('registry', run_name='__main__')"
    )
    environment = os.environ | {"SLUICE_ROOT": str(store.layout.root)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert '"best"' in run.stdout
    assert not {"typer", "pydantic", "numpy", "scipy", "registry.store"} & set(run.stderr.split())


_WORDS = st.sampled_from(["ls", "--json", "--root", "elsewhere", "--root=elsewhere", "--help", "-x", "", "--", "show"])


@given(st.lists(_WORDS, max_size=5), st.sampled_from(["", "there"]))
def test_a_plain_ls_means_what_typer_takes_it_for(words: list[str], named: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUICE_ROOT", named)
        asked = plain_ls(words)
        if asked is None:
            return
        shown: list[tuple[Path, bool]] = []
        patch.setattr(overview, "show", lambda root, *, json: shown.append((root, json)))
        assert CliRunner().invoke(app, words).exit_code == 0
    assert shown == [asked]


def test_the_usual_words_are_a_plain_ls(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLUICE_ROOT", raising=False)
    assert plain_ls(["ls"]) == (Path("models"), False)
    assert plain_ls(["ls", "--json", "--root", "there"]) == (Path("there"), True)
    assert plain_ls(["ls", "--help"]) is None
    assert plain_ls([]) is None


# ── what has to be mended first ──


@pytest.fixture
def promoted(store: Store) -> Store:
    for name in ("base", "pruned"):
        promotion.promote(store, name, policy=POLICIES[0], override=True, reason="a test")
    promotion.promote(store, "twice", channel="other", policy=POLICIES[0], override=True, reason="a test")
    return store


def _spoil(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.chmod(0o644)
    path.write_bytes(data.replace(old, new))


def _newest_of(store: Store, channel: str) -> Path:
    return store.layout.generations(channel) / numbered(generations.current(store.layout, channel).number)


def _unlogged_generation(store: Store) -> None:
    """As a promoter leaves it that is killed before it writes the log."""
    newest = generations.current(store.layout, "best")
    channels.create(store, newest.model_copy(update={"number": newest.number + 1, "replaces": newest.candidate}))


def _other_link(store: Store) -> None:
    fs.replace_link(store.layout.channel("best"), store.layout.channel_target("base"))


def _replaced_candidate(store: Store) -> None:
    shutil.rmtree(store.layout.candidate("pruned"))
    shutil.copytree(store.layout.candidate("base"), store.layout.candidate("pruned"), symlinks=True)


TO_MEND: dict[str, Callable[[Store], object]] = {
    "a generation that the log lacks": _unlogged_generation,
    "a link to what was served before": _other_link,
    "no link": lambda store: store.layout.channel("other").unlink(),
    "a served name with another manifest": _replaced_candidate,
    "something in the trash": lambda store: (
        trash.remove_blob(store.layout, store.put(b"x"), before=float("inf"))
        and fs.take_away(store.layout.blob(store.put(b"y")), store.layout.trash / canonical.digest(b"y"))
    ),
    "a folder that a copy left out": lambda store: store.layout.staging.rmdir(),
}
DAMAGES: dict[str, Callable[[Store], object]] = {
    "a generation": lambda store: _spoil(_newest_of(store, "best"), b"a test", b"b test"),
    "a generation that is no JSON": lambda store: _spoil(_newest_of(store, "best"), b"{", b"["),
    "a log entry": lambda store: _spoil(max(store.layout.log.iterdir()), b"a test", b"b test"),
    "the served manifest": lambda store: _spoil(
        store.layout.manifest(store.candidate("pruned").digest), b"mix-pruned", b"mix-prunes"
    ),
    "the newest generation, which is lost": lambda store: fs.remove_tree(_newest_of(store, "best")),
}


@pytest.mark.parametrize("unmade", TO_MEND.values(), ids=TO_MEND.keys())
def test_ls_mends_what_every_command_mends(promoted: Store, unmade: Callable[[Store], object]):
    whole = overview.lines(promoted.layout)
    expected = {"best": "pruned", "other": "twice"}
    assert settled.served(promoted.layout) == generations.served(promoted.layout) == expected
    unmade(promoted)
    assert settled.served(promoted.layout) is None
    _ls(promoted)
    assert settled.served(promoted.layout) == {"best": "pruned", "other": "twice"}
    assert overview.lines(promoted.layout) == whole


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_ls_says_each_time_that_a_channel_is_damaged(promoted: Store, damage: Callable[[Store], object]):
    damage(promoted)
    assert settled.served(promoted.layout) is None
    for _ in range(2):
        assert "damaged" in _ls(promoted)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"format":9,"kind":"sluice-registry"}', "this Sluice knows formats up to"),
        (b'{"format":1,"kind":"other"}', "marks a 'other'"),
        (b'{"format":1', "not a JSON record"),
    ],
)
def test_ls_reads_no_registry_that_it_does_not_know(promoted: Store, text: bytes, says: str):
    promoted.layout.marker.chmod(0o644)
    promoted.layout.marker.write_bytes(text)
    assert says in _ls(promoted)


def test_a_promotion_to_the_same_candidate_again_is_seen_by_the_log_alone(promoted: Store):
    """Its link and its candidate's manifest are what they have to be already."""
    _unlogged_generation(promoted)
    assert settled.served(promoted.layout) is None


def test_a_lock_file_or_a_hidden_file_in_the_way_is_nothing_to_mend(promoted: Store):
    (promoted.layout.root / "generations" / ".DS_Store").write_bytes(b"")
    (promoted.layout.candidates / ".DS_Store").write_bytes(b"")
    assert settled.served(promoted.layout) == {"best": "pruned", "other": "twice"}
    assert [line.name for line in overview.lines(promoted.layout)] == list(NAMES)


def _ls(store: Store) -> str:
    command = [sys.executable, "-m", "registry", "ls", "--root", str(store.layout.root)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in run.stderr
    return run.stdout + run.stderr


# ── records of the right digest and the wrong shape ──


def _forged(store: Store, kind: str, record: dict) -> None:
    manifest = store.candidate("pruned").digest
    data = canonical.dumps({"candidate": manifest, **record})
    path = store.layout.root / kind / manifest / f"{canonical.digest(data)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("evidence", {}),
        ("evidence", {"pack": 7, "repeats": 1, "conditions": {}, "totals": TOTALS}),
        ("evidence", {"pack": "a", "repeats": 1, "conditions": [], "totals": {}}),
        ("evidence", {"pack": "a", "repeats": 1, "conditions": {}, "totals": {"overall": None, "missing": 0}}),
        ("verdicts", {"verdict": "Pass"}),
        ("verdicts", {"verdict": "Pass", "policy": 1, "evidence": 7, "baseline": None, "baseline_evidence": []}),
    ],
)
def test_a_record_that_is_none_is_damage_of_its_candidate_alone(store: Store, kind: str, record: dict):
    whole = overview.lines(store.layout)
    _forged(store, kind, record)
    lines = {line.name: line for line in overview.lines(store.layout)}
    assert {"evidence": "no Evidence", "verdicts": "no Verdict"}[kind] in (lines["pruned"].damage or "")
    assert [lines["base"], lines["twice"]] == [line for line in whole if line.name != "pruned"]


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("shape", {"quantization": 7}),
        ("shape", {"experts": "many"}),
        ("inputs", {"op": 7}),
        ("inputs", {"parent": 7}),
        ("inputs", {"mix": {"name": 7}}),
        ("files", {"config.json": 7}),
        ("files", {"config.json": {"size": "7"}}),
    ],
)
def test_a_manifest_that_is_none_is_damage_of_its_candidate(store: Store, part: str, changes: dict):
    manifest = canonical.loads(store.layout.manifest(store.candidate("twice").digest).read_bytes())
    data = canonical.dumps(manifest | {part: manifest[part] | changes})
    store.layout.manifest(canonical.digest(data)).write_bytes(data)
    fs.replace_link(store.layout.candidate("twice") / "manifest", f"../../manifests/{canonical.digest(data)}.json")
    lines = {line.name: line for line in overview.lines(store.layout)}
    assert "Manifest" in (lines["twice"].damage or "")
    assert not lines["pruned"].damage
    assert "damaged" in overview.render(list(lines.values()))


def test_a_record_about_another_candidate_is_damage(store: Store):
    _observe(store, "base", "a", {}, None, (1.0, 1.0, 1), 0)
    there = store.layout.evidence(store.candidate("base").digest)
    shutil.copytree(there, store.layout.evidence(store.candidate("pruned").digest))
    (line,) = (line for line in overview.lines(store.layout) if line.name == "pruned")
    assert line.damage == "this record is about another candidate"


def test_an_ancestor_that_is_gone_is_damage_of_all_that_were_made_from_it(store: Store):
    fs.remove_tree(store.layout.manifest(store.candidate("pruned").digest))
    damaged = {line.name: line.damage for line in overview.lines(store.layout)}
    assert damaged["base"] is None
    assert "is missing" in (damaged["pruned"] or "")
    assert "is missing" in (damaged["twice"] or "")


def test_the_help_names_every_kind_of_report():
    assert ",".join(sorted(KINDS)) == "html,json,junit,md"
    for command in ("gate", "report"):
        assert "md,json,junit,html" in CliRunner().invoke(app, [command, "--help"]).stdout
