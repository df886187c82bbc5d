"""Packs: read strictly, and named by what decides a score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gates.errors import UsageError
from stages.evaluate.packs import read_pack

PROJECT = Path(__file__).resolve().parents[2]
YAML = "name: sums\ndescription: Sums.\ngrader: {grader}\nitems: packs/sums.jsonl\nmax_tokens: 8\n"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
ROW = {"id": "a", "category": "C", "messages": [{"role": "user", "content": "1+1"}], "expected": {"answer": "2"}}


def write(project: Path, *rows: object, grader: str = "tool-call", more: str = "") -> Path:
    (project / "packs").mkdir(exist_ok=True)
    (project / "packs" / "sums.yaml").write_text(YAML.format(grader=grader) + more)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (project / "packs" / "sums.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return project


@pytest.mark.parametrize("name", ["toy-toolcall", "toy-arithmetic", "toy-facts", "toy-strings"])
def test_the_packs_of_the_project_are_whole(name):
    pack = read_pack(PROJECT, name)
    assert len(pack.items) >= 40
    assert len({pack.digest, pack.dataset, pack.grader_digest}) == 3


def test_a_pack_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(UsageError) as error:
        read_pack(write(tmp_path, ROW), "sum")
    assert "sums" in error.value.remedy
    assert "sum.yaml" in error.value.where


def test_an_unknown_key_is_refused_with_its_line(tmp_path):
    with pytest.raises(UsageError, match="line 6, maximum: unknown key"):
        read_pack(write(tmp_path, ROW, more="maximum: 3\n"), "sums")


def test_a_pack_in_a_file_of_another_name_is_refused(tmp_path):
    write(tmp_path, ROW)
    (tmp_path / "packs" / "sums.yaml").rename(tmp_path / "packs" / "others.yaml")
    with pytest.raises(UsageError, match="called sums"):
        read_pack(tmp_path, "others")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (ROW | {"extra": 1}, "extra"),
        ({key: value for key, value in ROW.items() if key != "category"}, "category"),
        (ROW | {"messages": []}, "messages"),
        (ROW | {"tools": []}, "tools"),
        (ROW | {"id": 3}, "id"),
        (ROW | {"id": ""}, "id"),
        (ROW | {"expected": {}}, "expected"),
        (ROW | {"expected": {"answer": " 2"}}, "expected"),
        (ROW | {"expected": {"answer": "2", "name": "add"}}, "expected"),
        (ROW | {"expected": {"answer": "2", "arguments": {}}}, "expected"),
        (ROW | {"expected": {"arguments": {}}}, "expected"),
        (ROW | {"expected": {"name": "add"}}, "tools"),
        (ROW | {"tools": [TOOL], "expected": {"name": "add", "arguments": [1]}}, "expected.arguments"),
        ("", "line 2"),
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"id": "a", "id": "b"}', "given twice"),
        (json.dumps(ROW).replace('"2"', "NaN"), "NaN"),
        (
            json.dumps(ROW | {"tools": [TOOL], "expected": {"name": "add", "arguments": {"n": 0}}}).replace(
                ": 0", ": 1e999"
            ),
            "line 2",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row, field):
    with pytest.raises(UsageError) as error:
        read_pack(write(tmp_path, ROW | {"id": "first"}, row), "sums")
    assert "sums.jsonl, line 2" in error.value.where
    assert field in str(error.value)


def test_an_id_given_twice_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'a' is given twice"):
        read_pack(write(tmp_path, ROW, ROW), "sums")


def test_a_pack_without_items_is_refused(tmp_path):
    with pytest.raises(UsageError):
        read_pack(write(tmp_path), "sums")


def test_exact_text_cannot_expect_a_call(tmp_path):
    row = ROW | {"tools": [TOOL], "expected": {"name": "add"}}
    assert read_pack(write(tmp_path, row), "sums").items[0].right.name == "add"
    with pytest.raises(UsageError, match="exact-text"):
        read_pack(write(tmp_path, row, grader="exact-text"), "sums")


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path):
    text = json.dumps(ROW | {"expected": {"answer": "a\u2028b"}}, ensure_ascii=False)
    assert read_pack(write(tmp_path, text), "sums").items[0].right.answer == "a\u2028b"


def test_only_what_decides_a_score_decides_the_digests(tmp_path):
    before = read_pack(write(tmp_path, ROW), "sums")
    file = tmp_path / "packs" / "sums.yaml"
    file.write_text(file.read_text().replace("Sums.", "Little sums."))
    assert read_pack(tmp_path, "sums") == before
    file.write_text(file.read_text().replace("max_tokens: 8", "max_tokens: 9"))
    assert read_pack(tmp_path, "sums").digest != before.digest
    changed = read_pack(write(tmp_path, ROW | {"expected": {"answer": "3"}}), "sums")
    assert (changed.digest, changed.grader_digest) == (before.digest, before.grader_digest)
    assert changed.dataset != before.dataset
