"""Packs: read strictly, and named by what decides a score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gates.errors import UsageError
from stages.evaluate.packs import read_pack
from stages.evaluate.proof import JUNK, check_junk

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


WITH_ITEMS = sorted(path.stem for path in (PROJECT / "packs").glob("*.yaml") if "\nitems:" in path.read_text())


@pytest.mark.parametrize("name", WITH_ITEMS)
def test_the_packs_of_the_project_are_whole_and_junk_is_worth_little_in_them(name):
    pack = read_pack(PROJECT, name)
    assert len(pack.items) >= 15
    assert len({pack.digest, pack.dataset, pack.grader.digest}) == 3
    message = {"role": "assistant", "content": JUNK, "tool_calls": []}
    assert list(check_junk({"choices": [{"message": message, "finish_reason": "stop"}]}, [pack])) == []


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
    assert read_pack(write(tmp_path, row), "sums").items[0].expected.name == "add"
    with pytest.raises(UsageError, match=r"expected\.answer: Field required"):
        read_pack(write(tmp_path, row, grader="exact-text"), "sums")


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path):
    text = json.dumps(ROW | {"expected": {"answer": "a\u2028b"}}, ensure_ascii=False)
    assert read_pack(write(tmp_path, text), "sums").items[0].expected.answer == "a\u2028b"


def test_only_what_decides_a_score_decides_the_digests(tmp_path):
    before = read_pack(write(tmp_path, ROW), "sums")
    file = tmp_path / "packs" / "sums.yaml"
    file.write_text(file.read_text().replace("Sums.", "Little sums."))
    assert read_pack(tmp_path, "sums") == before
    file.write_text(file.read_text().replace("max_tokens: 8", "max_tokens: 9"))
    assert read_pack(tmp_path, "sums").digest != before.digest
    changed = read_pack(write(tmp_path, ROW | {"expected": {"answer": "3"}}), "sums")
    assert (changed.digest, changed.grader.digest) == (before.digest, before.grader.digest)
    assert changed.dataset != before.dataset


SCENARIOS = """\
# a remark
- id: a
  category: C
  messages:
    - role: user
      content: |
        What is half of one?
        Call add.
  tools: [{type: function, function: {name: add, parameters: {type: object, properties: {}}}}]
  expected: {name: add, arguments: {x: 0.5, yes: no, n: 1}}
- {id: b, category: D, messages: [{role: user, content: hm}], expected: {answer: "2"}}
"""


def scenarios(project: Path, text: str = SCENARIOS, more: str = "") -> Path:
    write(project, ROW, more=more)
    file = project / "packs" / "sums.yaml"
    file.write_text(file.read_text().replace("sums.jsonl", "sums-items.yaml"))
    (project / "packs" / "sums-items.yaml").write_text(text)
    return project


def test_items_may_be_yaml_and_mean_what_the_same_items_in_json_mean(tmp_path):
    pack = read_pack(scenarios(tmp_path), "sums")
    first = pack.items[0]
    assert first.messages[0]["content"] == "What is half of one?\nCall add.\n"
    assert first.expected.arguments == {"x": 0.5, "yes": "no", "n": 1}
    assert [type(value) for value in first.expected.arguments.values()] == [float, str, int]
    rows = [item.model_dump(mode="json", exclude_unset=True) for item in pack.items]
    assert read_pack(write(tmp_path, *rows), "sums").dataset == pack.dataset
    assert read_pack(scenarios(tmp_path, SCENARIOS.replace("# a remark\n", "")), "sums").dataset == pack.dataset
    assert read_pack(scenarios(tmp_path, SCENARIOS.replace("0.5", "0.25")), "sums").dataset != pack.dataset


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (SCENARIOS.replace("category: D", "categories: D"), r"line 11, \[1\]\.category: Field required"),
        (SCENARIOS.replace("category: C", "category: C\n  extra: 1"), r"line 4, \[0\]\.extra: unknown key"),
        (SCENARIOS.replace("arguments:", "argument:"), r"line 10, \[0\]\.expected\.argument: unknown key"),
        (SCENARIOS.replace("id: b", "id: a"), "'a' is given twice"),
        (SCENARIOS.replace("id: b", "id: b, id: c"), "'id' is given twice"),
        ("items: []", "must hold a list"),
        ("", "must hold a list"),
        ("[]", "no items"),
        ("- 3", r"line 1, \[0\]"),
        ("- [", "not readable as YAML"),
        ("- " + "[" * 1500, "not readable as YAML"),
        ("- !!python/object:os.system {}", "not readable as YAML"),
    ],
)
def test_a_bad_scenario_is_named_by_line_and_field(tmp_path, text, what):
    with pytest.raises(UsageError, match=what) as error:
        read_pack(scenarios(tmp_path, text), "sums")
    assert "sums-items.yaml" in error.value.where


def test_turns_are_a_limit_like_tokens_and_one_is_what_is_meant_where_nothing_is_said(tmp_path):
    one = read_pack(scenarios(tmp_path), "sums")
    assert one.max_turns == 1
    assert read_pack(scenarios(tmp_path, more="max_turns: 1\n"), "sums").digest == one.digest
    eight = read_pack(scenarios(tmp_path, more="max_turns: 8\n"), "sums")
    assert (eight.max_turns, eight.digest != one.digest) == (8, True)


@pytest.mark.parametrize("grader", ["nothing", "answers", "Tool-Call", "../tool-call", "os"])
def test_a_grader_that_is_not_there_is_refused_at_the_pack(tmp_path, grader):
    with pytest.raises(UsageError, match="grader") as error:
        read_pack(write(tmp_path, ROW, grader=grader), "sums")
    assert "sums.yaml" in error.value.where
