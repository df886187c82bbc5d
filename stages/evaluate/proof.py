"""The proof of the server, taken before any score: known text is forced through its real parsers.

It judges the server and not the model: untrained weights pass it, right weights behind a wrong flag do not. What is
proved, on raw responses:

    forced text   the server can be made to answer a given text at all
    reasoning     arrives in its own field, and none of it in content
    tool call     arrives as a tool call with typed arguments, and nothing of it in content
    plain answer  arrives in content as it was, with reasoning before it taken off
    truncation    is seen: finish_reason is length
    thinking off  the candidate's template closes the reasoning itself, and an answer is not taken for reasoning
    junk          scores next to nothing on any pack
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gates.errors import InvalidEvidence
from stages.common.execution import Result
from stages.common.grading import grader
from stages.common.grading.items import Grade, Item, Json
from stages.common.grading.tool_call import Expected
from stages.evaluate.client import Client, UnansweredError, request
from stages.evaluate.packs import Pack

REASONING = "sluice"
ANSWER = "The gate is open."
JUNK = "qz qz qz"
PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "metric": {"type": "boolean"}},
            "required": ["city", "days", "metric"],
        },
    },
}
CALL = Expected(name="probe", arguments={"city": "Oslo", "days": 3, "metric": True})

_OPENING = "<think>\n"
_THOUGHT = f"{REASONING}\n</think>\n\n"
_ARGUMENTS = '{"city": "Oslo", "days": 3, "metric": true}'
_CALL_TEXT = f'<tool_call>\n{{"name": "probe", "arguments": {_ARGUMENTS}}}\n</tool_call>'
_CHAT = [{"role": "user", "content": "proof"}]
_MUCH_JUNK = 0.25
"""Share of a pack's points from which junk is too much. Where it is right to call nothing, junk may earn some."""
_ROOM = 256
"""Tokens that the longest forced text may take: it has fewer characters than that."""

_FORCE = "vLLM: start it with --structured-outputs-config.enable_in_reasoning true"
_REASONING = "start the server with --reasoning-parser qwen3"
_TOOLS = "start the server with --tool-call-parser {} (vLLM: and --enable-auto-tool-choice)"
_THINKING = (
    'the chat template must close the reasoning where chat_template_kwargs say {"enable_thinking": false}; '
    "registry derive NAME NEW --replace chat_template.jinja=FILE gives a model such a template"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A claim that does not hold, what was seen instead, and what to set."""

    claim: str
    seen: str
    remedy: str


async def prove(client: Client, packs: Iterable[Pack]) -> None:
    """
    Raises:
        InvalidEvidence: the server cannot be trusted with scores; every fault is named, with the flag to set.
    """
    packs = tuple(packs)
    try:
        faults = await _faults(client, packs)
    except UnansweredError as error:
        raise InvalidEvidence(f"the server does not answer the proof: {error}") from None
    if faults:
        raise InvalidEvidence(
            "the server does not pass its proof, so no score was taken:\n"
            + "\n".join(f"  - {fault.claim}: {fault.seen}" for fault in faults),
            remedy="; ".join(dict.fromkeys(fault.remedy for fault in faults)),
        )


async def _faults(client: Client, packs: tuple[Pack, ...]) -> list[Fault]:
    on = await client.prompt(request(_CHAT, max_tokens=1, thinking=True))
    off = await client.prompt(request(_CHAT, max_tokens=1, thinking=False))
    # Where the template opens the reasoning itself, the model's text begins inside it.
    thought = _THOUGHT if on.rstrip().endswith("<think>") else _OPENING + _THOUGHT

    async def forced(text: str, *, thinking: bool = True, limit: int = _ROOM, tools: list[Json] | None = None) -> Any:
        body = request(_CHAT, tools=tools, max_tokens=limit, thinking=thinking, forced=text)
        return (await client.chat(body)).body

    call = await _call_as_written(client)
    called = await forced(thought + call, tools=[PROBE])
    plain = await forced(thought + ANSWER)
    if not any(REASONING in str(response) or ANSWER in str(response) for response in (called, plain)):
        return [Fault("forced text", f"the server answered something else: {_message(plain)}", _FORCE)]
    return [
        *check_reasoning(called),
        *check_call(called, "qwen3_coder" if "<function=" in call else "hermes"),
        *check_plain(plain),
        *check_truncation(await forced(thought + call, limit=4)),
        *check_template(on, off),
        *check_not_thinking(await forced(ANSWER, thinking=False)),
        *check_junk(await forced(JUNK, thinking=False), packs),
    ]


async def _call_as_written(client: Client) -> str:
    """A call of the probe as the candidate's own template writes it; in the hermes form where the template shows none.

    So a parser for another form than the model's is found, though it would parse its own.
    """
    function = {"name": CALL.name, "arguments": _ARGUMENTS}
    made = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    answered = {"role": "tool", "tool_call_id": "1", "content": "done"}
    body = request([*_CHAT, made, answered], tools=[PROBE], max_tokens=1, thinking=True)
    written = re.findall(r"<tool_call>(?:(?!<tool_call>).)*?</tool_call>", await client.prompt(body), re.DOTALL)
    return next((text for text in reversed(written) if "Oslo" in text), _CALL_TEXT)


def check_reasoning(called: Any) -> Iterator[Fault]:
    message = _message(called)
    if _reasoning(message).strip() != REASONING:
        yield Fault("reasoning arrives in its own field", f"that field holds {_reasoning(message)!r}", _REASONING)
    if REASONING in _content(message) or "think>" in _content(message):
        yield Fault("no reasoning is in content", f"content is {_content(message)!r}", _REASONING)


def check_call(called: Any, parser: str) -> Iterator[Fault]:
    message, remedy = _message(called), _TOOLS.format(parser)
    if _points("tool-call", CALL, called) != 1:
        calls, content = message.get("tool_calls") or [], _content(message)
        seen = f"tool_calls are {calls}, content is {content!r}"
        yield Fault("a tool call arrives as a call with typed arguments", seen, remedy)
    elif "tool_call>" in _content(message):
        yield Fault("nothing of a call is in content", f"content is {_content(message)!r}", remedy)


def check_plain(plain: Any) -> Iterator[Fault]:
    if _points("exact-text", Expected(answer=ANSWER), plain) != 1:
        yield Fault("a plain answer arrives in content, alone", f"the message is {_message(plain)}", _REASONING)


def check_truncation(cut: Any) -> Iterator[Fault]:
    outcome = _graded("exact-text", Expected(answer=ANSWER), cut).outcome
    if outcome != "truncated":
        seen = f"after 4 tokens of many the answer counts as {outcome}"
        yield Fault("an answer cut off says so", seen, "the server must give finish_reason length at max_tokens")


def check_template(on: str, off: str) -> Iterator[Fault]:
    """Whether the prompt with thinking off differs, and leaves no reasoning open."""
    if on == off:
        yield Fault(
            "thinking can be switched off", "the prompt is the same with enable_thinking true and false", _THINKING
        )
    elif off.rfind("<think>") > off.rfind("</think>"):
        yield Fault("thinking can be switched off", f"the prompt ends in {off[-20:]!r}", _THINKING)


def check_not_thinking(plain: Any) -> Iterator[Fault]:
    message = _message(plain)
    if _reasoning(message) or _content(message).strip() != ANSWER:
        yield Fault("with thinking off an answer is no reasoning", f"the message is {message}", _REASONING)


def check_junk(junk: Any, packs: Iterable[Pack]) -> Iterator[Fault]:
    for pack in packs:
        points = {item.id: _points_of_junk(pack, item, junk) for item in pack.items}
        # Where tools are offered, to call none of them may be right.
        whole = [item.id for item in pack.items if points[item.id] == item.of and not item.tools]
        share = sum(points.values()) / sum(item.of for item in pack.items)
        if whole:
            seen = f"{JUNK!r} gets all points of item {whole[0]} of {pack.name}"
            yield Fault("junk scores next to nothing", seen, f"mend what {whole[0]} expects")
        elif share >= _MUCH_JUNK:
            seen = f"{JUNK!r} gets {100 * share:.0f} % of {pack.name}"
            yield Fault("junk scores next to nothing", seen, f"mend what the items of {pack.name} expect")


def _points_of_junk(pack: Pack, item: Item, junk: Any) -> float:
    """What a model gets that says this whatever it is told. Code in it, if a grader takes it for that, fails."""
    responses = [junk]
    while len(responses) < pack.max_turns and pack.grader.reply(item, responses) is not None:
        responses.append(junk)
    results = {each.digest: Result("failed", detail="junk") for each in pack.grader.executions(item, responses)}
    return pack.grader.grade(item, responses, results).points


def _points(name: str, expected: Expected, response: Any) -> float:
    return _graded(name, expected, response).points


def _graded(name: str, expected: Expected, response: Any) -> Grade:
    asked = grader(name)
    right = expected.model_dump(exclude_unset=True)
    item = asked.item(id="proof", category="proof", messages=_CHAT, tools=[PROBE], expected=right)
    return asked.grade(item, [response])


def _message(response: Any) -> Json:
    try:
        message = response["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        return {}
    return message if isinstance(message, dict) else {}


def _reasoning(message: Json) -> str:
    """vLLM before 0.32 calls the field reasoning_content."""
    return str(message.get("reasoning") or message.get("reasoning_content") or "")


def _content(message: Json) -> str:
    return str(message.get("content") or "")
