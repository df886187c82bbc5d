"""Records that format 1 wrote stay readable, keep their names and mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates import canonical
from gates.policy import parse_policy
from gates.records import Evidence, Record, Row, Verdict
from gates.verdicts import judge
from tests.support.scores import complaints_of

NAMES = {
    "evidence.json": (Evidence, "7a894b443a13b3c57c9c2583b2754f8686f9d234cf867806e9033e414300c648"),
    "baseline-evidence.json": (Evidence, "f78501667bd41d3fbf409cde6462506e44bd202e91710e5ba09e1deedc1ae713"),
    "verdict.json": (Verdict, "1a5af2bfb15930cfd848e43ff17de559d68f360fe7355199e1d5ccfb5661c5cf"),
}


@pytest.fixture
def golden(project: Path) -> Path:
    return project / "tests" / "golden" / "format1"


@pytest.mark.parametrize("file", NAMES)
def test_a_record_of_format_1_keeps_its_bytes_and_its_name(golden: Path, file: str):
    kind, name = NAMES[file]
    data = (golden / file).read_bytes()
    record: Record = kind.from_bytes(data, where=file)
    assert record.to_bytes() == data
    assert record.identity() == canonical.digest(data) == name


@pytest.mark.parametrize("prefix", ["", "baseline-"])
def test_rows_of_format_1_can_still_be_trusted(golden: Path, prefix: str):
    rows = (golden / f"{prefix}rows.jsonl").read_bytes()
    evidence = Evidence.from_bytes((golden / f"{prefix}evidence.json").read_bytes())
    assert complaints_of(evidence, rows) == []
    assert b"".join(Row.from_bytes(line).to_bytes() + b"\n" for line in rows.splitlines()) == rows


def test_the_policy_of_format_1_has_the_name_that_its_verdict_gives(golden: Path):
    policy = parse_policy((golden / "policy.yaml").read_text(), "policy.yaml")
    assert policy.identity() == Verdict.from_bytes((golden / "verdict.json").read_bytes()).policy


def test_judged_again_today_it_comes_to_the_same(golden: Path):
    """In all but wording, which may get better."""
    was = Verdict.from_bytes((golden / "verdict.json").read_bytes())
    mine, theirs = (Evidence.from_bytes((golden / f"{p}evidence.json").read_bytes()) for p in ("", "baseline-"))
    now = judge(
        parse_policy((golden / "policy.yaml").read_text(), "policy.yaml"),
        candidate=was.candidate,
        evidence={mine.identity(): mine},
        baseline=was.baseline,
        baseline_evidence={theirs.identity(): theirs},
    )
    assert now.verdict == was.verdict == "FailToolcall"
    assert (now.evidence, now.baseline_evidence, now.policy) == (was.evidence, was.baseline_evidence, was.policy)
    for before, after in zip(was.gates, now.gates, strict=True):
        assert (before.gate, before.status) == (after.gate, after.status)
        assert [(r.status, r.value, r.limit) for r in before.rules] == [
            (r.status, r.value, r.limit) for r in after.rules
        ]
