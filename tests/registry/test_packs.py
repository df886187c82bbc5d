"""Public sets: kept as they were published, found again without a network, and never replaced unasked."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import IntegrityError, UsageError
from registry import doctor, fetching, fs, gc, packs, published
from registry.published.bfcl import schema
from registry.published.reading import rows_in, rows_of
from registry.store import Store
from tests.support.datasets_hub import COMMIT, DatasetsHub

SUMS = [
    {"question": "What is 1+1?", "answer": "One and one.\n#### 2"},
    {"question": "What is 1000+1?", "answer": "It is <<1000+1=1001>>1,001.\n#### 1,001"},
]
PACK = """\
name: sums
description: Sums.
grader: number
dataset: {hub: somebody/sums, config: main, split: test, format: gsm8k}
max_tokens: 8
"""
LATER = "beef" * 10


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.init(tmp_path / "models")


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "project"
    (folder / "packs").mkdir(parents=True)
    (folder / "packs" / "sums.yaml").write_text(PACK)
    (folder / "packs" / "own.yaml").write_text(
        "name: own\ndescription: Own.\ngrader: number\nitems: packs/own.jsonl\nmax_tokens: 8\n"
    )
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "published" / "main").mkdir(parents=True)
    (tmp_path / "published" / "main" / "test.jsonl").write_bytes(lines(SUMS))
    (tmp_path / "published" / "main" / "train.jsonl").write_bytes(lines(SUMS[:1]))
    (tmp_path / "published" / "README.md").write_text("# Sums")
    return tmp_path / "published"


@pytest.fixture
def site() -> Iterator[DatasetsHub]:
    files = {"README.md": b"# Sums", "main/test.jsonl": lines(SUMS), "main/train.jsonl": lines(SUMS[:1])}
    with DatasetsHub("somebody/sums", files) as site:
        yield site


@pytest.fixture
def run(site, store, project, tmp_path):
    """Runs the command line against the simulated Hub."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "registry", *words, "--root", store.layout.root, "--project", project],
            env=os.environ | site.environment(tmp_path / "home") | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def asked(store: Store, project: Path) -> list[dict]:
    """The items of the pack, as an evaluation reads them."""
    return packs.items(store, "sums", packs.read_file(project, "sums").dataset, where="here")


# --- keeping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["", "main/test.jsonl"])
def test_a_set_that_somebody_has_is_kept_from_its_folder_or_its_file(store, project, source, part):
    kept, new = fetching.fetch(store, project, "sums", source=source / part)
    assert (kept.items, kept.commit, new) == (2, None, True)
    assert [item["expected"] for item in asked(store, project)] == [{"number": "2"}, {"number": "1001"}]
    assert fetching.fetch(store, project, "sums", source=source / part) == (kept, False)
    assert fetching.fetch(store, project, "sums") == (kept, False)
    assert [entry.event for entry in store.log.entries()] == ["fetch"]


def test_compressed_files_and_lists_hold_the_same_rows():
    text = lines(SUMS)
    assert rows_in("a.jsonl.gz", gzip.compress(text), where="a") == rows_in("a.jsonl", text, where="a") == SUMS
    assert rows_in("a.json", json.dumps(SUMS, indent=1).encode(), where="a") == SUMS
    assert rows_in("a.jsonl", b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"), where="a") == SUMS  # as Windows saves it


def test_a_set_on_the_hub_is_kept_at_its_commit_whatever_the_branch_has_later(run, site, store, project):
    done = run("pack", "fetch", "sums")
    assert done.returncode == 0, done.stderr
    assert f"hf://datasets/somebody/sums@{COMMIT}" in done.stdout
    before, requests = asked(store, project), len(site.requests)
    site.files["main/test.jsonl"], site.commit = lines(SUMS[:1]), LATER
    assert "kept already" in run("pack", "fetch", "sums").stdout
    assert len(site.requests) == requests
    assert asked(store, project) == before
    assert LATER in run("pack", "fetch", "sums", "--replace").stdout
    assert len(asked(store, project)) == 1
    assert [entry.about["commit"] for entry in store.log.entries()] == [COMMIT, LATER]
    assert not fs.entries(store.layout.staging)


def test_other_rows_are_refused_until_they_are_to_replace_those_that_are_kept(store, project, source):
    first, _ = fetching.fetch(store, project, "sums", source=source)
    (source / "main" / "test.jsonl").write_bytes(lines(SUMS[::-1]))
    with pytest.raises(UsageError, match="2 items from local files") as error:
        fetching.fetch(store, project, "sums", source=source)
    assert "--replace" in error.value.remedy
    assert packs.kept(store, packs.read_file(project, "sums").dataset) == first
    second, new = fetching.fetch(store, project, "sums", source=source, replace=True)
    assert new
    assert second.rows != first.rows


def test_gc_keeps_the_rows_that_are_kept_and_removes_those_that_were_replaced(store, project, source):
    first, _ = fetching.fetch(store, project, "sums", source=source)
    (source / "main" / "test.jsonl").write_bytes(lines(SUMS[::-1]))
    second, _ = fetching.fetch(store, project, "sums", source=source, replace=True)
    gc.collect(store, now=time.time() + 2 * gc.GRACE)
    assert store.layout.blob(second.rows).is_file()
    assert not store.layout.blob(first.rows).exists()
    assert len(asked(store, project)) == 2


def test_another_split_or_revision_is_another_set(store, project, source):
    fetching.fetch(store, project, "sums", source=source)
    path = project / "packs" / "sums.yaml"
    for other in (PACK.replace("split: test", "split: train"), PACK.replace("format:", "revision: v1, format:")):
        path.write_text(other)
        with pytest.raises(UsageError, match="not in this registry") as error:
            asked(store, project)
        assert "registry pack fetch sums" in error.value.remedy


@pytest.mark.parametrize("kind", ["changed", "lost", "record"])
def test_damaged_rows_are_refused_found_by_the_doctor_and_mended(store, project, source, kind):
    kept, _ = fetching.fetch(store, project, "sums", source=source)
    dataset = packs.read_file(project, "sums").dataset
    path = store.layout.dataset(dataset.definition) if kind == "record" else store.layout.blob(kept.rows)
    if kind == "lost":
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes().replace(b"1", b"7"))
        path.chmod(0o444)
    with pytest.raises(IntegrityError) as error:
        asked(store, project)
    if kind != "record":
        assert "registry pack fetch sums --replace" in error.value.remedy
    assert doctor.exit_code(doctor.examine(store.layout.root)) == 5
    fetching.fetch(store, project, "sums", source=source, replace=True)
    assert len(asked(store, project)) == 2
    assert doctor.examine(store.layout.root) == []


def test_the_doctor_and_verify_find_nothing_wrong_with_kept_sets(store, project, source):
    fetching.fetch(store, project, "sums", source=source)
    assert doctor.examine(store.layout.root) == []


def test_the_packs_are_listed_with_what_is_kept(run, store, project, source):
    listed = run("pack", "ls")
    assert "not fetched" in listed.stdout
    assert "registry pack fetch sums" in listed.stderr
    fetching.fetch(store, project, "sums", source=source)
    own, sums = json.loads(run("pack", "ls", "--json").stdout)
    assert own["kept"] is own["dataset"] is None
    assert sums["kept"]["items"] == 2


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_pack_of_the_projects_own_items_has_nothing_to_fetch(store, project):
    with pytest.raises(UsageError, match="the project's own"):
        fetching.fetch(store, project, "own")


@pytest.mark.parametrize("text", [PACK + "items: a.jsonl\n", PACK.replace("dataset:", "# dataset:")])
def test_a_pack_has_items_or_a_dataset_and_not_both(project, text):
    (project / "packs" / "sums.yaml").write_text(text)
    with pytest.raises(UsageError, match="give items"):
        packs.read_file(project, "sums")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "no rows"),
        (b"[]", "no rows"),
        (b"3\n", "line 1"),
        (b"[3]", r"\[0\]"),
        (lines(SUMS) + b"{\n", "line 3"),
        (b'{"question": "a", "question": "b", "answer": "#### 1"}\n', "given twice"),
        (b'{"question": "a", "answer": "#### 1", "x": NaN}\n', "NaN"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "JSON"),
        (lines([{"question": "a"}]), "answer is missing"),
        (lines([{"question": "a", "answer": 3}]), "answer is no text"),
        (lines([{"question": " ", "answer": "#### 3"}]), "question is no text"),
        (lines([{"question": "a", "answer": "3"}]), "####"),
        (lines([{"question": "a", "answer": "#### many"}]), "####"),
    ],
)
def test_what_is_no_such_set_is_refused_and_nothing_is_kept(store, project, source, data, what):
    (source / "main" / "test.jsonl").write_bytes(data)
    with pytest.raises(UsageError, match=what):
        fetching.fetch(store, project, "sums", source=source)
    assert fs.entries(store.layout.datasets) == []


@pytest.mark.parametrize("name", ["nothing", "README.md"])
def test_a_source_that_is_none_is_refused(store, project, source, name):
    with pytest.raises(UsageError):
        fetching.fetch(store, project, "sums", source=source / name)


def test_a_file_that_cannot_be_unpacked_is_refused():
    for data in (b"no gzip", gzip.compress(lines(SUMS))[:-9]):
        with pytest.raises(UsageError, match="unpacked"):
            rows_in("a.jsonl.gz", data, where="a")


def test_parquet_without_pyarrow_names_where_it_can_be_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow") as error:
        rows_in("test-00000.parquet", b"PAR1", where="a")
    assert ".venv-prune" in error.value.remedy


@pytest.mark.parametrize("fault", ["gated", "gone", "split", "other"])
def test_what_the_hub_refuses_is_said_without_a_traceback(run, site, store, fault):
    if fault == "gated":
        site.gated = True
    if fault == "gone":
        site.name = "somebody/else"
    if fault == "split":
        del site.files["main/test.jsonl"]
    if fault == "other":
        site.stated["main/test.jsonl"] = "0" * 64
    done = run("pack", "fetch", "sums")
    assert done.returncode == (5 if fault == "other" else 2)
    assert "Traceback" not in done.stderr
    assert "somebody/sums" in done.stderr
    assert fs.entries(store.layout.datasets) == []


def test_without_a_network_the_other_way_is_named(run):
    done = run("pack", "fetch", "sums", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE" in done.stderr


# --- the forms --------------------------------------------------------------------------------------------------------

MMLU = {"question": "Q?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 2}
CHOICES = {f"choice{index}": choice for index, choice in enumerate(MMLU["choices"])}
CELLS = {"subject": "law", "row": 7, "cells": {"question": "Q?", **CHOICES, "answer": "2"}}
PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n    '''Twice x.'''\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "base_input": [[1.0], [1]],
    "plus_input": [[10**30]],
    "atol": 0,
}
TEST = """
def check(candidate):
    inputs = [[1.0], [1], [1000000000000000000000000000000]]
    results = [2.0, 2, 3]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 1e-06)
"""
ON_HUB = {key: PROBLEM[key] for key in ("task_id", "prompt", "entry_point", "canonical_solution")} | {"test": TEST}
FUNCTION = {
    "name": "maps.way",
    "description": "A way.",
    "parameters": {
        "type": "dict",
        "properties": {
            "type": {"type": "string"},
            "points": {"type": "array", "items": {"type": "tuple", "items": {"type": "float"}}},
            "how": {"type": "dict", "properties": {"fast": {"type": "any"}}},
        },
        "required": ["type"],
    },
}
ASKED = {"id": "simple_python_0", "question": [[{"role": "user", "content": "Which way?"}]], "function": [FUNCTION]}
ANSWERED = {**ASKED, "ground_truth": [{"maps.way": {"type": ["walk"], "points": ["", [[1, 2]]]}}]}


def test_both_forms_of_mmlu_say_the_same():
    (one,) = published.items("mmlu", published.joined("mmlu", {"a": [MMLU]}, where="a"), where="a")
    (other,) = published.items("mmlu", [CELLS], where="a")
    assert one["id"] == "law-0000"
    assert other["id"] == "law-0007"
    assert one["messages"] == other["messages"]
    assert one["expected"] == other["expected"] == {"letter": "C"}


def test_both_forms_of_humaneval_plus_call_with_the_same_numbers():
    (one,) = published.items("humaneval-plus", [PROBLEM], where="a")
    (other,) = published.items("humaneval-plus", [ON_HUB], where="a")
    assert one["expected"]["base"] == "[[1.0], [1]]"
    assert one["expected"]["plus"] == f"[[{10**30}]]"
    assert other["expected"]["plus"] == f"[[1.0], [1], [{10**30}]]"
    assert other["expected"]["tolerance"] == 1e-6
    assert one["expected"]["solution"] == other["expected"]["solution"]


def test_types_of_bfcl_become_those_of_json_schema_however_deep():
    made = schema(FUNCTION["parameters"])
    assert made["type"] == "object"
    assert made["properties"]["type"] == {"type": "string"}
    assert made["properties"]["points"]["items"] == {"type": "array", "items": {"type": "number"}}
    assert made["properties"]["how"]["properties"]["fast"] == {}


def test_names_of_bfcl_hold_no_points_in_tools_nor_in_what_is_expected():
    (item,) = published.items("bfcl", [ANSWERED], where="a")
    assert item["tools"][0]["function"]["name"] == item["expected"]["calls"][0]["name"] == "maps_way"


def test_of_bfcl_on_the_hub_the_newest_version_of_each_category_is_taken():
    names = [
        f"{folder}BFCL_v{version}_{kind}.json"
        for folder in ("", "possible_answer/")
        for version in (3, 10)
        for kind in ("simple", "live_simple", "multiple", "parallel", "parallel_multiple", "irrelevance", "java")
    ]
    chosen = published.chosen("bfcl", names, None, "test", where="a")
    assert len(chosen) == 8
    assert all("v10" in name and "live" not in name and "parallel_multiple" not in name for name in chosen)


@pytest.mark.parametrize(
    ("name", "row", "what"),
    [
        ("mmlu", MMLU | {"choices": ["w"], "row": 1}, "four texts"),
        ("mmlu", MMLU | {"answer": 4, "row": 1}, "none of the choices"),
        ("mmlu", MMLU | {"answer": True, "row": 1}, "none of the choices"),
        ("mmlu", {"subject": "law", "row": 1, "cells": 3}, "mmlu"),
        ("mmlu", MMLU | {"row": "../../x"}, "row"),
        ("humaneval-plus", PROBLEM | {"entry_point": "a b"}, "entry_point"),
        ("humaneval-plus", PROBLEM | {"atol": -1}, "atol"),
        ("humaneval-plus", PROBLEM | {"plus_input": [3]}, "inputs"),
        ("humaneval-plus", ON_HUB | {"test": "inputs = open('x')"}, "humaneval-plus"),
        ("humaneval-plus", ON_HUB | {"test": "x = 3"}, "no inputs"),
        ("humaneval-plus", ON_HUB | {"test": "("}, "humaneval-plus"),
        ("bfcl", ANSWERED | {"id": "java_0"}, "none of the categories"),
        ("bfcl", ANSWERED | {"ground_truth": []}, "0 calls"),
        ("bfcl", ANSWERED | {"id": "irrelevance_0"}, "1 calls"),
        ("bfcl", ANSWERED | {"question": [[], []]}, "bfcl"),
        ("bfcl", ANSWERED | {"ground_truth": [{"other": {}}]}, "not offered"),
        ("bfcl", ANSWERED | {"ground_truth": [{"maps.way": {"type": "walk"}}]}, "lists"),
        ("bfcl", ANSWERED | {"function": [FUNCTION, FUNCTION | {"name": "maps_way"}]}, "same name"),
        ("bfcl", ANSWERED | {"function": [FUNCTION | {"name": "a" * 65}]}, "too long"),
    ],
)
def test_a_row_that_has_not_its_form_is_named(name, row, what):
    with pytest.raises(UsageError, match=what) as error:
        published.items(name, [row], where="rows")
    assert "rows, row 1" in error.value.where


def test_bfcl_without_a_category_or_with_answers_to_nothing_is_refused():
    with pytest.raises(UsageError, match="multiple, parallel, irrelevance"):
        published.joined("bfcl", {"a": [ANSWERED]}, where="a")
    every = [{**ANSWERED, "id": f"{kind}_0"} for kind in ("simple", "multiple", "parallel")]
    every.append({**ASKED, "id": "irrelevance_0"})
    assert len(published.joined("bfcl", {"a": every}, where="a")) == 4
    with pytest.raises(UsageError, match="simple_9"):
        published.joined("bfcl", {"a": every, "b": [{"id": "simple_9", "ground_truth": []}]}, where="a")


def test_an_id_given_twice_is_refused():
    with pytest.raises(UsageError, match="given twice"):
        published.items("mmlu", [CELLS, CELLS], where="a")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), min_size=1, max_size=4))
def test_rows_are_what_they_were_after_they_were_kept(rows):
    data = published.written(rows)
    again = rows_of(data, where="a")
    assert published.written(again) == data
    assert _typed(again) == _typed(rows)


def _typed(value):
    """1 and 1.0 are apart here, which in Python they are not."""
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(each) for each in value]
    return type(value), repr(value)


def test_what_a_set_is_called_after_follows_from_all_that_names_it():
    names = [
        packs.Published(hub="a/b", format="gsm8k"),
        packs.Published(hub="a/b", format="mmlu"),
        packs.Published(hub="a/c", format="gsm8k"),
        packs.Published(hub="a/b", format="gsm8k", config="main"),
        packs.Published(hub="a/b", format="gsm8k", split="train"),
        packs.Published(hub="a/b", format="gsm8k", revision="v1"),
    ]
    assert len({each.definition for each in names}) == len(names)
