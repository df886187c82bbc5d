"""What is learnt of a chat: what the assistant says, in the form in which it is generated, and nothing else."""

from __future__ import annotations

import json
from array import array
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gates.errors import UsageError
from registry.manifests import MixUse, Taken
from registry.recipes import Train
from stages.train import data
from stages.train.answers import IGNORED, Answers, Measured, judge
from stages.train.data import Chat
from tests.support import tiny

PROJECT = Path(__file__).resolve().parents[2]

THOUGHTS_AFTER_THE_LAST_QUESTION = """\
{%- set found = namespace(at=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set found.at = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content and loop.index0 > found.at %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""As Qwen3 has it."""


@pytest.fixture(scope="module")
def toy() -> Any:
    return AutoTokenizer.from_pretrained(PROJECT / "stages" / "toy" / "checkpoint")


def read(tokenizer: Any, *rows: Any, sequence_length: int = 512, vocabulary: int | None = None) -> list[Chat]:
    mix = MixUse(name="mix", rows="0" * 64, datasets=(Taken(dataset="rows.jsonl", count=len(rows)),))
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return data.read(mix, lines, tokenizer, sequence_length=sequence_length, vocabulary=vocabulary)[1]


def learnt(tokenizer: Any, chat: Chat) -> list[str]:
    """The runs of tokens that are learnt, as text."""
    runs: list[list[int]] = [[]]
    for label in chat.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def turns(*texts: str, **more: Any) -> dict[str, Any]:
    """A chat in which user and assistant take turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]} | more


# ------------------------------------------------------------------------------------------------------------- the mask


def test_an_answer_is_learnt_with_its_thoughts_and_its_end_and_no_token_of_the_prompt(toy):
    row = turns("compute 1+1", "2")
    row["messages"][1]["reasoning_content"] = "work out each"
    (chat,) = read(toy, row)
    assert learnt(toy, chat) == ["<think>\nwork out each\n</think>\n\n2<|im_end|>"]
    assert chat.labels[0] == IGNORED
    assert all(label in (IGNORED, token) for token, label in zip(chat.ids, chat.labels, strict=True))


def test_a_tool_call_is_learnt_and_what_the_tool_answers_is_not(toy):
    call = {"type": "function", "function": {"name": "set_light", "arguments": {"room": "hall"}}}
    row = {
        "messages": [
            {"role": "user", "content": "light"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "switched on"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": [{"type": "function", "function": {"name": "set_light", "parameters": {"properties": {}}}}],
    }
    (chat,) = read(toy, row)
    assert learnt(toy, chat) == [
        '<tool_call>\n{"name": "set_light", "arguments": {"room": "hall"}}\n</tool_call><|im_end|>',
        "done<|im_end|>",
    ]


def test_every_turn_is_learnt_once_in_one_text_where_the_template_writes_it_always_alike(toy):
    (chat,) = read(toy, turns("a", "one", "b", "two", "c", "three"))
    assert learnt(toy, chat) == ["one<|im_end|>", "two<|im_end|>", "three<|im_end|>"]


def test_a_turn_whose_thoughts_the_template_leaves_out_later_is_learnt_from_a_text_that_ends_with_it(tmp_path):
    tokenizer = tiny.tokenizer(tmp_path, THOUGHTS_AFTER_THE_LAST_QUESTION)
    row = turns("a", "one", "b", "two")
    row["messages"][1]["reasoning_content"] = "first"
    row["messages"][3]["reasoning_content"] = "second"
    found = read(tokenizer, row)
    assert sorted(text for chat in found for text in learnt(tokenizer, chat)) == [
        "<think>\nfirst\n</think>\n\none<|im_end|>",
        "<think>\nsecond\n</think>\n\ntwo<|im_end|>",
    ]
    assert len(found) == 2


def test_what_an_assistant_says_before_any_question_is_not_learnt(toy):
    row = turns("hi", "hello")
    row["messages"].insert(0, {"role": "assistant", "content": "welcome"})
    (chat,) = read(toy, row)
    assert learnt(toy, chat) == ["hello<|im_end|>"]


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=2, max_size=6
    )
)
def test_whatever_is_said_is_learnt_to_the_last_byte(toy, texts):
    """Spaces, line ends and letters of several bytes, of which a token may hold a part."""
    texts = [text.strip() for text in texts]
    texts += ["."] * (len(texts) % 2)
    answers = [f"{text}<|im_end|>" for text in texts[1::2]]
    # As long as it takes: how much of a long chat is kept is another claim.
    chats = read(toy, turns(*texts), sequence_length=1 << 20)
    assert "".join("".join(learnt(toy, chat)) for chat in chats) == "".join(answers)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": [{"role": "user", "content": "a web page"}]}, "no answer of an assistant"),
        ({"messages": [{"role": "assistant", "content": "alone"}]}, "no answer of an assistant"),
    ],
)
def test_a_row_that_teaches_no_answer_is_named(toy, row, named):
    with pytest.raises(UsageError, match=named) as caught:
        read(toy, turns("a", "b"), row)
    assert "row 2 of the sample from rows.jsonl" in str(caught.value)


def test_a_template_that_asks_in_another_way_than_it_writes_is_refused(tmp_path):
    template = tiny.CHAT_TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<answer>{% endif %}")
    with pytest.raises(UsageError, match="in another way than it asks for it"):
        read(tiny.tokenizer(tmp_path, template), turns("a", "b"))


def test_a_row_that_the_template_refuses_is_named(tmp_path):
    tokenizer = tiny.tokenizer(tmp_path, "{{ raise_exception('no tools here') }}")
    with pytest.raises(UsageError, match="no tools here"):
        read(tokenizer, turns("a", "b"))


def test_a_token_that_the_model_does_not_know_is_refused(toy):
    with pytest.raises(UsageError, match="the model knows only 20"):
        read(toy, turns("a", "b"), vocabulary=20)


def test_what_is_cut_is_counted_and_an_answer_that_is_gone_altogether_teaches_nothing(toy):
    row, long = turns("compute 1+1", "2"), turns("compute 1+1, " * 40, "2")
    assert len(read(toy, row, long, sequence_length=64)) == 1
    mix = MixUse(name="mix", rows="0" * 64, datasets=(Taken(dataset="rows.jsonl", count=2),))
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in (row, long))
    (share,), _ = data.read(mix, lines, toy, sequence_length=64, vocabulary=None)
    whole = [len(chat.ids) for chat in read(toy, row, long, sequence_length=10_000)]
    assert (share.rows, share.cut_rows, share.cut_tokens) == (2, 1, whole[1] - 64)
    assert share.tokens == whole[0] + 64
    with pytest.raises(UsageError, match="sequence_length"):
        read(toy, long, sequence_length=64)


# -------------------------------------------------------------------------------------------------- order and measuring


def chats(*lengths: int) -> list[Chat]:
    return [Chat(array("i", [n + 1] * length), array("i", [n + 1] * length)) for n, length in enumerate(lengths)]


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(2, 16), min_size=1, max_size=40))
def test_packing_keeps_every_chat_whole_once_and_no_sequence_too_long(lengths):
    packed = data.sequences(chats(*lengths), longest=16, packing=True)
    found = []
    for row in packed:
        assert len(row["input_ids"]) == sum(row["seq_lengths"]) <= 16
        ends = [0]
        for length in row["seq_lengths"]:
            ends.append(ends[-1] + length)
        found += [tuple(row["input_ids"][begin:end]) for begin, end in pairwise(ends)]
    assert sorted(found) == sorted(tuple(chat.ids) for chat in chats(*lengths))


@given(count=st.integers(1, 30), epochs=st.integers(1, 4), seed=st.integers(0, 5))
def test_each_epoch_has_every_sequence_once_in_an_order_of_its_own(count, epochs, seed):
    trained = Train(mix="m", reference="r", epochs=epochs, seed=seed)
    order = list(data.schedule(trained, count))
    assert [sorted(order[first : first + count]) for first in range(0, len(order), count)] == [
        list(range(count))
    ] * epochs
    assert order == list(data.schedule(trained, count))
    assert data.steps_of(trained, len(order)) == -(-len(order) // 8)


def test_a_part_of_an_epoch_and_a_number_of_steps_are_what_they_say():
    assert len(data.schedule(Train(mix="m", reference="r", epochs="0.5"), 10)) == 5
    trained = Train(mix="m", reference="r", max_steps=7, batch_size=2, gradient_accumulation=3)
    assert len(data.schedule(trained, 4)) == 42
    assert data.steps_of(trained, 42) == 7


@given(
    lengths=st.lists(st.integers(1, 99), min_size=1, max_size=9),
    trained=st.builds(Train, mix=st.just("m"), reference=st.just("r"), epochs=st.integers(1, 4)),
    size=st.integers(1, 5),
)
def test_what_goes_through_the_model_is_counted_batch_by_batch(lengths, trained, size):
    order = data.schedule(trained, len(lengths))
    drawn = list(order)
    batches = [[lengths[each] for each in drawn[at : at + size]] for at in range(0, len(drawn), size)]
    found = data.amount(lengths, order, size)
    assert (found.sequences, found.batches) == (len(drawn), len(batches))
    assert found.padded == sum(len(batch) * max(batch) for batch in batches)
    assert found.largest >= max(len(batch) * max(batch) for batch in batches)


def test_a_training_that_would_never_end_is_counted_at_once_and_has_an_order():
    order = data.schedule(Train(mix="m", reference="r", max_steps=2**40), 5)
    assert data.amount([7, 8, 9, 1, 5], order, 1).padded == pytest.approx(2**43 * 6, rel=1e-5)
    assert sorted(islice(order, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="fewer max_steps"):
        data.schedule(Train(mix="m", reference="r", max_steps=2**52), 5)
    with pytest.raises(UsageError, match="fewer epochs"):
        data.schedule(Train(mix="m", reference="r", epochs="1e20"), 5)


def test_an_answer_is_judged_by_what_the_model_expects_after_the_token_before():
    """Logits that are certain of the next token: no loss where they are right, and one wrong token spoils a match."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 3, 4], [IGNORED, 2, 3, IGNORED]])
    expected = torch.tensor([[2, 3, 4, 0], [2, 9, 0, 0]])  # the second row is wrong after its second token
    states = torch.nn.functional.one_hot(expected, 10).float() * 50
    measured = Measured.of([judge(states, labels, torch.nn.Identity())])
    assert measured.exact.tolist() == [True, False]
    assert measured.losses.tolist() == pytest.approx([0, 0, 0, 50])
    assert measured.loss == pytest.approx(12.5)
    assert measured.match == 0.5
    assert len(ids) == len(measured.exact)


def test_what_a_model_is_measured_on_is_padded_on_the_right_and_loses_nothing():
    found = data.measured_on(chats(5, 2, 9))
    (batch,) = found
    assert isinstance(batch, Answers)
    assert batch.attention_mask.sum(1).tolist() == [2, 5, 9]
    assert (batch.labels != IGNORED).sum(1).tolist() == [1, 4, 8]
    assert batch.input_ids.shape == (3, 9)
