"""Each dataset's own schema becomes a chat; a row that drifted from it is named, with its field."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import UsageError
from stages.common import calibration
from stages.common.calibration.adapters import ADAPTERS, written
from tests.support import tiny

Row = dict[str, Any]

XLAM = {
    "id": 0,
    "query": "Where can I find live giveaways for beta access and games?",
    "answers": '[{"name": "live_giveaways_by_type", "arguments": {"type": "beta", "limit": 3}}]',
    "tools": json.dumps(
        [
            {
                "name": "live_giveaways_by_type",
                "description": "Retrieve live giveaways based on the specified type.",
                "parameters": {
                    "type": {"description": "The type of giveaways.", "type": "str", "default": "game"},
                    "limit": {"description": "How many.", "type": "int, optional"},
                    "tags": {"description": "Which.", "type": "List[str]"},
                    "key": {"description": "Sorts.", "type": "Callable[[float], float]"},
                },
            }
        ]
    ),
}
SWE_SMITH = {
    "messages": json.dumps(
        [
            {
                "role": "system",
                "content": "You are a helpful assistant.",
                "agent": "main",
                "message_type": "system_prompt",
            },
            {"role": "user", "content": [{"type": "text", "text": "Fix the "}, {"type": "text", "text": "issue."}]},
            {
                "role": "assistant",
                "content": "Let me look.",
                "thought": "Let me look.",
                "action": "ls",
                "tool_calls": [
                    {
                        "id": "toolu_1",
                        "type": "function",
                        "function": {"name": "bash", "arguments": '{"command": "ls"}'},
                    }
                ],
            },
            {"role": "tool", "content": "", "tool_call_ids": ["toolu_1"]},
            {"role": "assistant", "content": "Done.", "tool_calls": None},
        ]
    ),
    "instance_id": "oauthlib__oauthlib.1fd5253630.combine_file__0fceycuu",
    "resolved": True,
    "model": "claude-3-7-sonnet-20250219",
    "traj_id": "oauthlib__oauthlib.1fd5253630.combine_file__0fceycuu.nnrw8uz8",
    "patch": "diff --git a/x b/x",
}
HERMES = {
    "id": "0",
    "conversations": [
        {"from": "system", "value": "You are a function calling AI model."},
        {"from": "human", "value": "List the files."},
        {
            "from": "gpt",
            "value": "<think>\nI should look.\n</think>\n"
            '<tool_call>\n{"name": "terminal", "arguments": {"command": "ls"}}\n</tool_call>\n'
            '<tool_call>{"name": "terminal", "arguments": "{\\"command\\": \\"pwd\\"}"}</tool_call>',
        },
        {"from": "tool", "value": '<tool_response>\n{"output": "a.txt"}\n</tool_response>'},
        {"from": "gpt", "value": "There is a.txt."},
    ],
    "tools": '[{"type": "function", "function": {"name": "terminal", "parameters": {"type": "object"}}}]',
    "category": "Terminal & Coding",
    "task": "List the files.",
}
THOUGHTS = {
    "messages": [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."},
    ],
    "num_tokens": 24,
    "source": "open-r1/OpenR1-Math-220k",
}
MMLU = {"question": "Which is prime?", "subject": "math", "choices": ["1", "4", "7", "9"], "answer": 2}
ROWS: dict[str, Row] = {
    "chat": {"messages": [{"role": "user", "content": "hello"}]},
    "evol_codealpaca": {"instruction": "Write a loop.", "output": "for i in range(3):\n    print(i)"},
    "bigcodebench": {
        "task_id": "BigCodeBench/0",
        "complete_prompt": "import random\ndef task_func():\n    '''…'''\n",
        "instruct_prompt": "Draw a number.",
        "canonical_solution": "    return random.random()\n",
        "code_prompt": "import random\ndef task_func():\n",
        "test": "…",
        "entry_point": "task_func",
        "doc_struct": "{}",
        "libs": "['random']",
    },
    "swe_bench": {
        "instance_id": "astropy__astropy-12907",
        "repo": "astropy/astropy",
        "base_commit": "d16bfe05a744909de4b27f5875fe0d4ed41ce607",
        "patch": "diff --git a/x.py b/x.py\n",
        "test_patch": "",
        "problem_statement": "It is wrong.",
        "hints_text": "",
        "created_at": "2022-03-03T15:14:54Z",
        "version": "4.3",
    },
    "xlam": XLAM,
    "mmlu": MMLU,
    "c4": {"text": "A page.\nOf words.", "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/"},
    "mixture_of_thoughts": THOUGHTS,
    "swe_smith": SWE_SMITH,
    "sharegpt": HERMES,
}


def chat(adapter: str, row: Row) -> Row:
    return json.loads(written(row, ADAPTERS[adapter], where="the dataset, row 1"))


def call(name: str, **arguments: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_every_adapter_is_tried_here():
    assert ROWS.keys() == ADAPTERS.keys()


def test_questions_and_answers_become_two_turns():
    for adapter, question, answer in (
        ("evol_codealpaca", "Write a loop.", "for i in range(3):\n    print(i)"),
        (
            "bigcodebench",
            "Draw a number.",
            "```python\nimport random\ndef task_func():\n    return random.random()\n```",
        ),
        (
            "swe_bench",
            "Write a patch for the repository astropy/astropy that solves this issue:\n\nIt is wrong.",
            "```diff\ndiff --git a/x.py b/x.py\n```",
        ),
        ("mmlu", "Which is prime?\n\nA. 1\nB. 4\nC. 7\nD. 9", "C. 7"),
    ):
        assert chat(adapter, ROWS[adapter]) == {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        }


def test_the_text_of_a_web_page_is_one_turn():
    assert chat("c4", ROWS["c4"]) == {"messages": [{"role": "user", "content": "A page.\nOf words."}]}


def test_thoughts_go_into_a_field_of_their_own():
    _, answer = chat("mixture_of_thoughts", THOUGHTS)["messages"]
    assert answer == {"role": "assistant", "reasoning_content": "Two and two.", "content": "It is 4."}


def test_tools_of_xlam_become_schemas_and_its_answers_calls():
    made = chat("xlam", XLAM)
    assert made["messages"][1] == {
        "role": "assistant",
        "tool_calls": [call("live_giveaways_by_type", type="beta", limit=3)],
    }
    parameters = made["tools"][0]["function"]["parameters"]
    assert parameters["properties"] == {
        "type": {"type": "string", "description": "The type of giveaways.", "default": "game"},
        "limit": {"type": "integer", "description": "How many."},
        "tags": {"type": "array", "description": "Which."},
        "key": {"description": "Sorts."},
    }
    assert parameters["required"] == ["tags", "key"]


def test_an_agents_trajectory_keeps_its_calls_and_what_the_tools_said():
    assert chat("swe_smith", SWE_SMITH)["messages"] == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Fix the issue."},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call("bash", command="ls")]},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "Done."},
    ]


def test_a_conversation_with_tools_in_its_text_gets_them_as_calls():
    made = chat("sharegpt", HERMES)
    assert made["messages"][2:] == [
        {
            "role": "assistant",
            "reasoning_content": "I should look.",
            "tool_calls": [call("terminal", command="ls"), call("terminal", command="pwd")],
        },
        {"role": "tool", "content": '{"output": "a.txt"}'},
        {"role": "assistant", "content": "There is a.txt."},
    ]
    assert made["tools"][0]["function"]["name"] == "terminal"


def test_lists_are_read_whether_they_are_written_as_lists_or_as_json():
    for adapter, field in (("xlam", "tools"), ("xlam", "answers"), ("swe_smith", "messages"), ("sharegpt", "tools")):
        row = ROWS[adapter]
        assert chat(adapter, row | {field: json.loads(row[field])}) == chat(adapter, row)


# ---------------------------------------------------------------------------------------------------------- drift

NEEDED = [
    ("evol_codealpaca", "instruction"),
    ("evol_codealpaca", "output"),
    ("bigcodebench", "instruct_prompt"),
    ("bigcodebench", "code_prompt"),
    ("bigcodebench", "canonical_solution"),
    ("swe_bench", "repo"),
    ("swe_bench", "problem_statement"),
    ("swe_bench", "patch"),
    ("xlam", "query"),
    ("xlam", "tools"),
    ("xlam", "answers"),
    ("mmlu", "question"),
    ("mmlu", "choices"),
    ("mmlu", "answer"),
    ("c4", "text"),
    ("mixture_of_thoughts", "messages"),
    ("swe_smith", "messages"),
    ("sharegpt", "conversations"),
    ("chat", "messages"),
]


def refused(adapter: str, row: Any) -> str:
    with pytest.raises(UsageError) as caught:
        written(row, ADAPTERS[adapter], where="org/name, row 7")
    assert caught.value.where == "org/name, row 7"
    assert caught.value.exit_code == 2
    return caught.value.what


@pytest.mark.parametrize(("adapter", "field"), NEEDED)
def test_a_renamed_field_is_named_with_those_that_are_there(adapter, field):
    row = {f"{key}_v2" if key == field else key: value for key, value in ROWS[adapter].items()}
    what = refused(adapter, row)
    if adapter == "chat":
        assert what == "messages_v2: unknown key"
    else:
        assert what.startswith(f"{field}: missing; the row has ")
        assert f"{field}_v2" in what


@pytest.mark.parametrize(("adapter", "field"), NEEDED)
@pytest.mark.parametrize("value", [7, 1.5, True, {"a": 1}, [], "", " \n", None], ids=repr)
def test_a_field_of_another_type_or_empty_is_named(adapter, field, value):
    if adapter == "mmlu" and field == "answer" and value == 7:
        value = 4  # there is no fifth choice
    assert refused(adapter, ROWS[adapter] | {field: value}).startswith(f"{field}: ")


@pytest.mark.parametrize("row", [None, 7, "text", ["messages"]])
@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_a_row_that_is_no_object_is_refused(adapter, row):
    assert refused(adapter, row) == "the row: not an object"


@pytest.mark.parametrize(
    ("adapter", "path", "value", "field"),
    [
        ("mixture_of_thoughts", ("messages", 0, "role"), "robot", "messages[0].role: must be one of"),
        ("mixture_of_thoughts", ("messages", 1, "content"), " ", "messages[1].content: empty"),
        ("mixture_of_thoughts", ("messages", 1), "hello", "messages[1]: must be an object"),
        ("swe_smith", ("messages", 2, "role"), "critic", "messages[2].role: must be one of"),
        ("swe_smith", ("messages", 1, "content"), "", "messages[1].content: empty"),
        ("swe_smith", ("messages", 1, "content"), 7, "messages[1].content: must be text or a list of texts"),
        ("swe_smith", ("messages", 1, "content", 0, "text"), None, "messages[1].content[0].text: missing"),
        ("swe_smith", ("messages", 2, "tool_calls"), {"a": 1}, "messages[2].tool_calls: must be a list"),
        ("swe_smith", ("messages", 2, "tool_calls", 0), 7, "messages[2].tool_calls[0]: must be an object"),
        (
            "swe_smith",
            ("messages", 2, "tool_calls", 0, "function", "arguments"),
            "{",
            "messages[2].tool_calls[0].function.arguments: must be JSON",
        ),
        ("sharegpt", ("conversations", 1, "from"), "robot", "conversations[1].from: must be one of"),
        ("sharegpt", ("conversations", 4, "value"), "", "conversations[4].value: empty"),
        ("sharegpt", ("conversations", 4, "value"), "<tool_call>{</tool_call>", "conversations[4].value: must be JSON"),
        ("xlam", ("answers", 0, "arguments"), [1], "answers[0].arguments: must be an object"),
        ("xlam", ("answers", 0, "name"), "", "answers[0].name: empty"),
        ("xlam", ("tools", 0, "parameters"), "none", "tools[0].parameters: must be an object"),
        ("xlam", ("tools", 0, "parameters", "type"), "str", "tools[0].parameters.type: must be an object"),
        ("xlam", ("tools", 0, "parameters", "type", "type"), 7, "tools[0].parameters.type.type: must be text"),
        ("mmlu", ("choices",), ["1", "2", "3"], "choices: must be 4, and are 3"),
        ("mmlu", ("choices", 1), 4, "choices[1]: must be text"),
        ("mmlu", ("answer",), "C", "answer: must be a number from 0 to 3"),
    ],
)
def test_what_is_wrong_deep_in_a_row_is_named_with_its_path(adapter, path, value, field):
    row = copy.deepcopy(ROWS[adapter])
    as_text = isinstance(row[path[0]], str)
    if as_text:
        row[path[0]] = json.loads(row[path[0]])
    place: Any = row
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    if as_text:
        row[path[0]] = json.dumps(row[path[0]])
    assert refused(adapter, row).startswith(field)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(NEEDED), JSON, st.booleans())
def test_whatever_stands_in_a_field_becomes_a_chat_or_is_refused_by_name(needed, value, as_text):
    adapter, field = needed
    row = ROWS[adapter] | {field: json.dumps(value) if as_text else value}
    named = field
    try:
        assert chat(adapter, row)["messages"]
    except UsageError as error:
        named = error.what.partition(":")[0]
    # what an adapter lets pass can still be no chat, and then the message is named
    assert field in named or named.startswith("messages[")


@pytest.mark.parametrize("adapter", sorted(set(ADAPTERS) - {"chat"}))
def test_drift_in_a_mix_ends_with_the_dataset_the_row_and_the_field(tmp_path, adapter):
    field = next(field for name, field in NEEDED if name == adapter)
    drifted = {key: value for key, value in ROWS[adapter].items() if key != field}
    text = "".join(json.dumps(row) + "\n" for row in (ROWS[adapter], drifted))
    (tmp_path / "data.jsonl").write_text(text, encoding="utf-8")
    stated = f"{{path: data.jsonl, adapter: {adapter}, count: 1}}"
    (tmp_path / "mix.yaml").write_text(f"name: m\ndatasets: [{stated}]\n", encoding="utf-8")
    with pytest.raises(UsageError, match=f"^{field}: missing") as caught:
        calibration.take("mix.yaml", tmp_path)
    assert caught.value.where == f"{tmp_path / 'data.jsonl'}, line 2"


# --------------------------------------------------------------------------------------------- what the model reads

HERMES_STYLE = """\
{%- for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + call.function.name + (call.function.arguments | tojson) + '</tool_call>' }}
{%- endfor %}<|im_end|>
{% endfor %}"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.tokenizer(tmp_path_factory.mktemp("tokenizer"), HERMES_STYLE)


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_the_model_reads_all_that_an_adapter_makes_tools_as_tools(tokenizer, adapter):
    row = chat(adapter, ROWS[adapter])
    (batch,) = calibration.batches(calibration.tokenized(json.dumps(row).encode(), tokenizer), 4096)
    text = tokenizer.decode(batch.input_ids[0])
    for message in row["messages"]:
        assert (message.get("content") or "").strip() in text
        assert message.get("reasoning_content", "") in text
        for each in message.get("tool_calls", []):
            function = each["function"]
            assert f"<tool_call>{function['name']}{json.dumps(function['arguments'])}</tool_call>" in text
    assert text.count("<tool>") == len(row.get("tools", []))
