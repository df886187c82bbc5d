"""Calibration: which rows a mix takes, and what the model reads of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.canonical import digest
from gates.errors import UsageError
from registry import gc
from registry.manifests import MixUse
from registry.store import Store
from stages.common import calibration
from tests.support import stores, tiny
from tests.support.datasets_hub import COMMIT, DatasetsHub
from tests.support.hub import Hub

PROJECT = Path(__file__).resolve().parents[2]

TEMPLATE = """\
{%- for tool in tools or [] %}[{{ tool.name }}]{% endfor %}
{%- for message in messages %}
{%- if message.role == 'system' and message.content == 'refuse' %}{{ raise_exception('no system here') }}{% endif %}
{{- '<' + message.role + '>' }}
{%- if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}
{%- endfor %}"""


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def write_mix(project: Path, *counts: int, rows: list[list[Any]] | None = None, seed: int = 0) -> str:
    """A mix of one dataset for each count; `rows` are theirs (ten chats each, if not given)."""
    lines = [f"name: mix\nseed: {seed}\ndatasets:"]
    for number, count in enumerate(counts):
        path = project / f"data{number}.jsonl"
        chats = rows[number] if rows else [chat(f"{number}.{line}") for line in range(10)]
        path.write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
        lines.append(f"  - {{path: {path.name}, count: {count}}}")
    (project / "mix.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "mix.yaml"


def taken(project: Path, mix: str = "mix.yaml") -> list[str]:
    _, rows = calibration.take(mix, project)
    return [json.loads(row)["messages"][0]["content"] for row in rows.splitlines()]


# ------------------------------------------------------------------------------------------------- which rows


def test_the_record_names_exactly_the_rows_taken(tmp_path):
    use, rows = calibration.take(write_mix(tmp_path, 3, 2), tmp_path)
    assert use.rows == digest(rows)
    assert [(each.dataset, each.count) for each in use.datasets] == [("data0.jsonl", 3), ("data1.jsonl", 2)]
    assert rows.endswith(b"\n")
    assert len(rows.splitlines()) == 5


def test_the_same_mix_takes_the_same_rows_and_another_seed_takes_others(tmp_path):
    first = taken(tmp_path, write_mix(tmp_path, 4, 4))
    assert taken(tmp_path) == first
    assert taken(tmp_path, write_mix(tmp_path, 4, 4, seed=1)) != first


@given(st.integers(0, 2**31), st.integers(1, 10))
def test_rows_are_taken_once_each_in_the_files_order_and_a_larger_count_takes_more(tmp_path_factory, seed, count):
    project = tmp_path_factory.mktemp("project")
    every = taken(project, write_mix(project, 10, seed=seed))
    some = taken(project, write_mix(project, count, seed=seed))
    assert len(set(some)) == len(some) == count
    assert some == [row for row in every if row in some]
    assert set(taken(project, write_mix(project, max(1, count - 1), seed=seed))) <= set(some)


@given(st.permutations(range(10)))
def test_the_order_of_lines_does_not_matter_to_which_rows_are_taken(tmp_path_factory, order):
    project = tmp_path_factory.mktemp("project")
    chats = [chat(str(number)) for number in range(10)]
    mixed = taken(project, write_mix(project, 4, rows=[[chats[number] for number in order]]))
    assert set(mixed) == set(taken(project, write_mix(project, 4, rows=[chats])))


def test_rows_keep_the_order_of_their_keys_because_the_template_writes_it(tmp_path):
    arguments = {"b": 1, "a": 2}
    call = {"function": {"name": "f", "arguments": arguments}}
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    _, rows = calibration.take(write_mix(tmp_path, 1, rows=[[row]]), tmp_path)
    assert list(json.loads(rows)["messages"][0]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]


def test_the_way_a_line_is_written_does_not_matter(tmp_path):
    mix = write_mix(tmp_path, 1, rows=[[chat("é")]])
    once = calibration.take(mix, tmp_path)
    (tmp_path / "data0.jsonl").write_text(
        '\n{ "messages" : [{"role": "user", "content": "é"}]}\r\n\n', encoding="utf-8"
    )
    assert calibration.take(mix, tmp_path) == once


def test_rows_are_taken_without_torch_or_transformers(tmp_path):
    mix = write_mix(tmp_path, 2)
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from pathlib import Path; from stages.common import calibration\n"
        f"calibration.take({mix!r}, Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_row_that_stands_twice_is_taken_once(tmp_path):
    rows = [[chat("a"), chat("b"), chat("a")], [chat("b"), chat("c")]]
    assert sorted(taken(tmp_path, write_mix(tmp_path, 2, 1, rows=rows))) == ["a", "b", "c"]
    with pytest.raises(UsageError, match=r"takes 3 rows of data0.jsonl, which has 2 \(1 more stand in the mix twice\)"):
        taken(tmp_path, write_mix(tmp_path, 3, 1, rows=rows))


def test_rows_of_parquet_are_those_of_the_same_rows_in_jsonl(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"instruction": f"do {number}", "output": f"done {number}"} for number in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for kind in ("parquet", "jsonl"):
        (tmp_path / f"{kind}.yaml").write_text(
            f"name: m\ndatasets: [{{path: rows.{kind}, adapter: evol_codealpaca, count: 7}}]\n", encoding="utf-8"
        )
    first, second = (calibration.take(f"{kind}.yaml", tmp_path) for kind in ("parquet", "jsonl"))
    assert first[1] == second[1]


HUB_MIX = "name: m\ndatasets: [{hub: org/name, config: code, split: tool, adapter: evol_codealpaca, count: 3%s}]\n"
CARD = b"---\nconfigs:\n- config_name: code\n  data_files:\n  - split: tool\n    path: data/tool.jsonl\n---\n"


def dataset_files(count: int = 40) -> dict[str, bytes]:
    """A dataset's repository with a split of its own in a configuration of its own."""
    rows = [{"instruction": f"do {number}", "output": "done"} for number in range(count)]
    return {"README.md": CARD, "data/tool.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def take_from(hub: Hub | None, project: Path) -> dict[str, Any]:
    """What `mix.yaml` takes in a process of its own, whose client talks to `hub` (None: to nobody)."""
    code = (
        "import sys; from pathlib import Path; from registry.output import data, end_with\n"
        "from registry.store import Store; from stages.common import calibration\n"
        "def work():\n"
        f"    use, rows = calibration.take('mix.yaml', Path({str(project)!r}), store=Store.init(Path('models')))\n"
        "    data({'use': use.model_dump(mode='json', exclude_unset=True), 'rows': rows.decode()})\n"
        "sys.exit(end_with(work))"
    )
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(project / "home")}
    environment = os.environ | (hub.environment(project / "home") if hub else nobody)
    environment["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if done.returncode == 0 else {"code": done.returncode, "said": done.stderr}


@pytest.mark.parametrize("pool", ["", ", pool: 30"])
def test_a_dataset_of_the_hub_is_read_by_configuration_and_split_at_a_commit_that_is_recorded(tmp_path, pool):
    (tmp_path / "mix.yaml").write_text(HUB_MIX % pool, encoding="utf-8")
    with DatasetsHub("org/name", dataset_files()) as hub:
        found = take_from(hub, tmp_path)
    assert found["use"]["datasets"] == [{"dataset": f"org/name@{COMMIT}:code:tool", "count": 3}]
    asked = [json.loads(line)["messages"][0]["content"] for line in found["rows"].splitlines()]
    assert len(asked) == 3
    assert all(int(each.removeprefix("do ")) < (30 if pool else 40) for each in asked)
    assert found["use"]["rows"] == digest(found["rows"].encode())


def test_what_a_candidate_was_made_with_is_frozen_and_needs_no_hub(tmp_path):
    (tmp_path / "mix.yaml").write_text(HUB_MIX % ", pool: 40", encoding="utf-8")
    with DatasetsHub("org/name", dataset_files()) as hub:
        first = take_from(hub, tmp_path)
    store = Store.open(tmp_path / "models")
    parent = stores.add(store, "toy", tmp_path)
    store.put(first["rows"].encode())
    inputs = stores.pruned(parent).model_copy(update={"mix": MixUse.model_validate(first["use"])})
    with store.step(inputs.identity()) as folder:
        store.commit("pruned", inputs, stores.checkpoint(folder / "model"))
    assert take_from(None, tmp_path) == first
    (tmp_path / "mix.yaml").write_text("seed: 1\n" + HUB_MIX % ", pool: 40", encoding="utf-8")
    assert take_from(None, tmp_path)["code"] == 2, "another seed takes other rows, which are not frozen"


def test_a_mix_is_frozen_where_there_is_a_network_and_then_needs_none(tmp_path):
    """What `docker compose run mix` does, in processes of their own: prune's containers have no network."""
    (tmp_path / "mix.yaml").write_text(HUB_MIX % ", pool: 40", encoding="utf-8")
    (tmp_path / "v1.yaml").write_text(
        "name: v1\nparent: toy\nsteps: [{prune: {compression: 0.5, mix: mix.yaml, sequence_length: 64}}]\n",
        encoding="utf-8",
    )
    store = Store.init(tmp_path / "models")
    stores.add(store, "toy", tmp_path)
    assert take_from(None, tmp_path)["code"] == 2
    command = [sys.executable, "-m", "stages.prune", "--freeze", "--root", "models", "--recipe", "v1.yaml"]
    with DatasetsHub("org/name", dataset_files()) as hub:
        environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": str(PROJECT)}
        for _ in range(2):
            subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    found = take_from(None, tmp_path)
    assert [each["count"] for each in found["use"]["datasets"]] == [3]
    assert [entry.event for entry in store.log.entries()].count("freeze") == 1
    gc.collect(store, grace=0, keep_generations=None, now=time.time() + 1e6)
    assert take_from(None, tmp_path) == found
    assert store.names() == ["toy"]


# --------------------------------------------------------------------------------------------------- bad input


def test_a_dataset_whose_id_is_not_known_is_refused_with_what_to_fill_in(tmp_path):
    (tmp_path / "mix.yaml").write_text("name: m\ndatasets: [{hub: null, count: 1}]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="not known for sure") as caught:
        calibration.take("mix.yaml", tmp_path)
    assert caught.value.where == f"{tmp_path / 'mix.yaml'}, datasets[0].hub"
    assert "fill in its id (org/name)" in str(caught.value.remedy)


def test_a_dataset_whose_terms_were_not_accepted_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "mix.yaml").write_text(HUB_MIX % "", encoding="utf-8")
    with DatasetsHub("org/name", dataset_files(), gated=True) as hub:
        found = take_from(hub, tmp_path)
    assert found["code"] == 2
    assert "accept its terms on https://huggingface.co/datasets/org/name" in found["said"]


def test_a_dataset_that_the_hub_does_not_have_is_refused_with_the_page_to_look_at(tmp_path):
    (tmp_path / "mix.yaml").write_text(HUB_MIX % "", encoding="utf-8")
    with DatasetsHub("org/other", dataset_files()) as hub:
        found = take_from(hub, tmp_path)
    assert found["code"] == 2
    assert "the dataset org/name@main:code:tool cannot be had" in found["said"]
    assert "mix.yaml, datasets[0].hub" in found["said"]


def test_a_hub_that_cannot_be_reached_is_answered_with_where_to_fetch_the_mix(tmp_path):
    (tmp_path / "mix.yaml").write_text(HUB_MIX % "", encoding="utf-8")
    found = take_from(None, tmp_path)
    assert found["code"] == 2
    assert "fetch the mix where there is a network" in found["said"]


def test_drift_in_a_dataset_of_the_hub_names_dataset_commit_row_and_field(tmp_path):
    files = dataset_files(5)
    files["data/tool.jsonl"] = files["data/tool.jsonl"].replace(b"instruction", b"prompt")
    (tmp_path / "mix.yaml").write_text(HUB_MIX % "", encoding="utf-8")
    with DatasetsHub("org/name", files) as hub:
        found = take_from(hub, tmp_path)
    assert found["code"] == 2
    assert "instruction: missing; the row has output, prompt" in found["said"]
    assert f"org/name@{COMMIT}:code:tool, row 1" in found["said"]


def test_drift_in_the_last_dataset_is_said_before_the_first_is_fetched(tmp_path):
    mix = HUB_MIX.replace("}]", "}, {path: last.jsonl, count: 1}]")
    (tmp_path / "mix.yaml").write_text(mix % "", encoding="utf-8")
    (tmp_path / "last.jsonl").write_text('{"text": "drifted"}\n', encoding="utf-8")
    with DatasetsHub("org/name", dataset_files()) as hub:
        found = take_from(hub, tmp_path)
        assert found["code"] == 2
        assert f"{tmp_path / 'last.jsonl'}, line 1" in found["said"]
        assert not list((tmp_path / "home").rglob("*.arrow"))
        (tmp_path / "last.jsonl").write_text(json.dumps(chat("mended")) + "\n", encoding="utf-8")
        assert len(take_from(hub, tmp_path)["rows"].splitlines()) == 4
    assert list((tmp_path / "home").rglob("*.arrow")), "this is where it would have lain"


def test_a_mix_with_an_unknown_adapter_is_refused_with_those_that_there_are(tmp_path):
    (tmp_path / "mix.yaml").write_text("name: m\ndatasets: [{path: a, adapter: xlamm, count: 1}]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no adapter 'xlamm'") as caught:
        calibration.take("mix.yaml", tmp_path)
    assert "swe_smith, xlam" in str(caught.value.remedy)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR0")
    (tmp_path / "mix.yaml").write_text("name: m\ndatasets: [{path: a.parquet, count: 1}]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no Parquet file"):
        calibration.take("mix.yaml", tmp_path)


def test_a_broken_row_can_be_left_out_by_its_number(tmp_path):
    mix = write_mix(tmp_path, 1, rows=[[{"messages": []}, chat("good")]])
    with pytest.raises(UsageError, match="messages"):
        taken(tmp_path, mix)
    text = (tmp_path / mix).read_text(encoding="utf-8").replace("count: 1}", "count: 1, skip: [1]}")
    (tmp_path / mix).write_text(text, encoding="utf-8")
    assert taken(tmp_path, mix) == ["good"]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "not a JSON value"),
        ('{"messages": [{"role": "user", "content": NaN}]}', "not a JSON value"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "not a JSON value"),
        ('{"messages": [], "messages": []}', "not a JSON value"),
        ("[]", "the row: not an object"),
        ("{}", "messages: must be a list"),
        ('{"messages": []}', "messages: must be a list"),
        ('{"messages": ["hello"]}', "messages[0]: not an object"),
        ('{"messages": [{"content": "hello"}]}', "messages[0].role"),
        ('{"messages": [{"role": ["user"], "content": "hello"}]}', "messages[0].role"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content: missing"),
        ('{"messages": [{"role": "user", "content": 7}]}', "messages[0].content: must be text"),
        ('{"messages": [{"role": "user", "content": " "}]}', "messages[0].content: empty"),
        (
            '{"messages": [{"role": "assistant", "content": "", "reasoning_content": []}]}',
            "messages[0].reasoning_content",
        ),
        ('{"messages": [{"role": "assistant", "tool_calls": {}}]}', "messages[0].tool_calls"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": {}}', "tools: must be a list"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": ["f"]}', "tools[0]: not an object"),
        ('{"messages": [{"role": "user", "content": "a"}], "functions": []}', "functions: unknown key"),
    ],
)
def test_a_malformed_row_is_refused_with_its_file_line_and_field(tmp_path, line, field):
    mix = write_mix(tmp_path, 1)
    data = tmp_path / "data0.jsonl"
    data.write_text(json.dumps(chat("good")) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        calibration.take(mix, tmp_path)
    assert field in caught.value.what
    assert caught.value.where == f"{data}, line 3"


def test_bytes_that_are_not_utf_8_are_refused(tmp_path):
    mix = write_mix(tmp_path, 1)
    (tmp_path / "data0.jsonl").write_bytes(b'{"messages": [{"role": "user", "content": "\xff"}]}\n')
    with pytest.raises(UsageError, match="not a JSON value in UTF-8"):
        calibration.take(mix, tmp_path)


def test_fewer_rows_than_the_count_are_refused_with_both_numbers(tmp_path):
    with pytest.raises(UsageError, match=r"takes 11 rows of data0.jsonl, which has 10") as caught:
        calibration.take(write_mix(tmp_path, 11), tmp_path)
    assert caught.value.where == f"{tmp_path / 'mix.yaml'}, datasets[0].count"


def test_a_dataset_that_is_not_there_is_refused(tmp_path):
    mix = write_mix(tmp_path, 1, 1)
    (tmp_path / "data1.jsonl").unlink()
    with pytest.raises(UsageError, match=r"data1\.jsonl cannot be read") as caught:
        calibration.take(mix, tmp_path)
    assert caught.value.where == f"{tmp_path / 'mix.yaml'}, datasets[1].path"


def test_a_dataset_that_stands_twice_is_refused(tmp_path):
    write_mix(tmp_path, 1)
    (tmp_path / "mix.yaml").write_text(
        "name: m\ndatasets: [{path: a, count: 1}, {path: a, count: 1}]\n", encoding="utf-8"
    )
    with pytest.raises(UsageError, match="stands twice"):
        calibration.take("mix.yaml", tmp_path)


def test_a_mix_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the mix cannot be read"):
        calibration.take("nothing.yaml", tmp_path)


# ------------------------------------------------------------------------------------------ what the model reads


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.tokenizer(tmp_path_factory.mktemp("tokenizer"), TEMPLATE)


def rows_of(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def texts(batches: list[calibration.Batch], tokenizer) -> list[str]:
    """What stands in the batches, row by row, padding left out."""
    return [
        tokenizer.decode(ids[mask.bool()])
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


def test_a_row_is_read_through_the_models_own_template_with_tools_and_reasoning(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": "é"}}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "reasoning_content": "think", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    made = calibration.batches(
        calibration.tokenized(rows_of({"messages": messages, "tools": [{"name": "f"}]}), tokenizer), 512
    )
    assert texts(made, tokenizer) == ['[f]<user>go<assistant>(think){"b": 1, "a": "é"}<tool>done']


def test_a_long_row_is_cut_at_the_sequence_length(tokenizer):
    made = calibration.batches(calibration.tokenized(rows_of(chat("x" * 1000)), tokenizer), 50)
    assert texts(made, tokenizer) == ["<user>" + "x" * 44]


def test_a_tokenizer_set_to_cut_and_pad_in_its_own_way_changes_nothing(tokenizer, monkeypatch):
    rows = rows_of(chat("x" * 1000), chat("short"))
    expected = calibration.batches(calibration.tokenized(rows, tokenizer), 50)
    monkeypatch.setattr(tokenizer, "truncation_side", "left")
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    tokenizer.add_tokens(["<far beyond the model>"])
    monkeypatch.setattr(tokenizer, "_pad_token_type_id", 7)
    (batch,) = calibration.batches(calibration.tokenized(rows, tokenizer), 50)
    assert batch.input_ids.equal(expected[0].input_ids)
    assert batch.attention_mask.equal(expected[0].attention_mask)


@given(st.lists(st.integers(0, 80), min_size=1, max_size=30), st.integers(8, 64), st.integers(1, 400))
def test_batches_hold_every_row_once_within_the_limit_and_mask_the_padding(tokenizer, lengths, longest, limit):
    rows = rows_of(*(chat("x" * length) for length in lengths))
    made = calibration.batches(calibration.tokenized(rows, tokenizer), longest, batch_tokens=limit)
    expected = sorted(("<user>" + "x" * length)[:longest] for length in lengths)
    assert sorted(texts(made, tokenizer)) == expected
    for batch in made:
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert batch.input_ids.numel() <= limit or len(batch.input_ids) == 1
        # On the right, and no wider than the longest row needs.
        assert (batch.attention_mask.diff(dim=1) <= 0).all()
        assert batch.attention_mask.sum(dim=1).max() == batch.input_ids.shape[1]


@given(st.lists(st.integers(0, 80), min_size=1, max_size=30), st.integers(8, 64))
def test_packed_rows_are_all_there_whole_in_their_order_and_as_many_as_fit(tokenizer, lengths, longest):
    rows = rows_of(*(chat(chr(ord("a") + number % 26) * length) for number, length in enumerate(lengths)))
    expected = [("<user>" + chr(ord("a") + number % 26) * length)[:longest] for number, length in enumerate(lengths)]
    made = texts(calibration.batches(calibration.tokenized(rows, tokenizer), longest, packing=True), tokenizer)
    assert all(len(each) <= longest for each in made)
    # each sequence is a run of the rows, and the next row would not have fitted
    runs, rest = [], list(expected)
    while rest:
        run = rest.pop(0)
        while rest and len(run) + len(rest[0]) <= longest:
            run += rest.pop(0)
        runs.append(run)
    assert sorted(made) == sorted(runs)


def test_batches_are_the_same_each_time(tokenizer):
    rows = rows_of(*(chat("x" * (7 * length % 31)) for length in range(30)))
    once, again = (calibration.batches(calibration.tokenized(rows, tokenizer), 64, batch_tokens=128) for _ in range(2))
    assert len(once) > 3
    assert all(a.input_ids.equal(b.input_ids) for a, b in zip(once, again, strict=True))
    assert all(a.attention_mask.equal(b.attention_mask) for a, b in zip(once, again, strict=True))


def test_a_row_that_the_template_refuses_is_named(tokenizer):
    rows = rows_of(chat("good"), {"messages": [{"role": "system", "content": "refuse"}]})
    with pytest.raises(UsageError, match="no system here") as caught:
        calibration.batches(calibration.tokenized(rows, tokenizer), 64)
    assert "row 2" in caught.value.where


def test_a_model_without_a_chat_template_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UsageError, match="no chat template"):
        calibration.batches(calibration.tokenized(rows_of(chat("hello")), tokenizer), 64)
