"""Conversations without a model: written transcripts, mutants of them, and agents too simple to earn points.

    turns = ideals(project, "toolcall-15")[item.id]       packs/<name>/ideal.yaml: what a perfect model would say
    grade(pack, item, turns)                              played through the grader as the runner does it
    for mutant in call_mutants(turns, item.tools): ...    each one change away from the transcript
    share(pack, AGENTS["echo"])                           what an agent gets of all points of a pack

`verify` runs the code of packs that execute some; the others need none.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from gates.strict_yaml import Strict, parse_list
from stages.common.grading.items import Grade, Item, plain
from stages.evaluate.packs import Pack

Json = dict[str, Any]
Agent = Callable[[list[Json], list[Json] | None], Json]
"""The messages so far and the tools offered → the body of a chat completion."""
Verify = Callable[[Any], Any]
"""An Execution → its Result."""


class Call(Strict):
    name: str
    arguments: Json = Field(default_factory=dict)


class Turn(Strict):
    """One answer of the model's."""

    content: str = ""
    calls: tuple[Call, ...] = ()


class _Ideal(Strict):
    id: str
    turns: tuple[Turn, ...]

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return plain(value)


def ideals(project: Path, pack: str) -> dict[str, tuple[Turn, ...]]:
    """The transcripts that earn every point, by item."""
    path = project / "packs" / pack / "ideal.yaml"
    read = parse_list(path.read_text(encoding="utf-8"), _Ideal, where=str(path))
    written = {each.id: each.turns for each in read}
    assert len(written) == len(read), f"an id is given twice in {path}"
    return written


def response(content: str | None = None, calls: Iterable[tuple[str, Any]] = (), reason: str = "stop") -> Json:
    """A chat completion as servers send it; arguments given as a str go in as they are, malformed or not."""
    made = [
        {
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for name, given in calls
    ]
    message = {"role": "assistant", "content": content, "tool_calls": made}
    return {"choices": [{"message": message, "finish_reason": reason}]}


def said(turn: Turn) -> Json:
    return response(turn.content or None, [(call.name, call.arguments) for call in turn.calls])


def conversation(pack: Pack, item: Item, agent: Agent) -> list[Json]:
    """The raw responses of a whole conversation, held as the runner holds it."""
    responses: list[Json] = []
    messages = list(item.messages)
    while True:
        responses.append(agent(messages, item.tools))
        more = pack.grader.reply(item, responses) if len(responses) < pack.max_turns else None
        if more is None:
            return responses
        messages += more


def judged(pack: Pack, item: Item, responses: Sequence[Json], verify: Verify | None = None) -> Grade:
    wanted = pack.grader.executions(item, responses)
    assert verify is not None or not wanted, "this pack executes code: give a verifier"
    results = {execution.digest: verify(execution) for execution in wanted} if verify else {}
    return pack.grader.grade(item, responses, results)


def grade(pack: Pack, item: Item, turns: Sequence[Turn], verify: Verify | None = None) -> Grade:
    """What a transcript is worth. Where the conversation asks for more than it holds, nothing more is said."""
    left = iter(turns)
    return judged(pack, item, conversation(pack, item, lambda *_: said(next(left, Turn()))), verify)


def share(pack: Pack, agent: Agent, verify: Verify | None = None) -> float:
    """The part of all points of a pack, 0 to 1, that `agent` gets."""
    points = sum(judged(pack, item, conversation(pack, item, agent), verify).points for item in pack.items)
    return points / sum(item.of for item in pack.items)


# --- agents -----------------------------------------------------------------------------------------------------------


def _silent(_messages: list[Json], _tools: list[Json] | None) -> Json:
    return response("")


def _echo(messages: list[Json], _tools: list[Json] | None) -> Json:
    return response(_asked(messages))


def _first_tool(messages: list[Json], tools: list[Json] | None) -> Json:
    """Calls it once, as its schema would have it, and then repeats what the tool said."""
    if not tools:
        return response("")
    if messages[-1]["role"] == "tool":
        return response(messages[-1]["content"])
    function = tools[0]["function"]
    return response(None, [(function["name"], _filled(function.get("parameters", {}), _asked(messages)))])


def _refusing(_messages: list[Json], _tools: list[Json] | None) -> Json:
    return response("I'm sorry, but I can't help with that.")


AGENTS: dict[str, Agent] = {
    "silent": _silent,
    "echo": _echo,
    "first tool": _first_tool,
    "refusing": _refusing,
}


def _asked(messages: list[Json]) -> str:
    return next(str(message["content"]) for message in reversed(messages) if message["role"] == "user")


def _filled(schema: Json, text: str) -> Any:
    """A value of the schema's type, with the user's text wherever a text fits."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {key: _filled(each, text) for key, each in schema.get("properties", {}).items()}
    if kind == "array":
        return [_filled(schema.get("items", {}), text)]
    return {"integer": 1, "number": 1.0, "boolean": False}.get(str(kind), text)


# --- mutants ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """A transcript one change away from another: `kind` of change, and where."""

    kind: str
    turns: tuple[Turn, ...]
    where: tuple[int, int] | None = None
    """The turn and the call in it that was changed; for swapped and repeated calls the first."""
    path: tuple[str | int, ...] = ()
    """The argument that was changed."""

    def __str__(self) -> str:
        return f"{self.kind} at {self.where} {'.'.join(map(str, self.path))}: {[t.model_dump() for t in self.turns]}"


def call_mutants(turns: Sequence[Turn], tools: Sequence[Json]) -> Iterator[Mutant]:
    """Kinds: `call dropped`, `call told` (written as text instead), `tool changed`, `call repeated`, `call added`
    (one of each tool offered), `calls swapped` (every two that differ), `silent end`, and those of `json_mutants` on
    each call's arguments, with `arguments malformed` left to tests of the grader.
    """
    places = [(t, c) for t, turn in enumerate(turns) for c in range(len(turn.calls))]
    names = [tool["function"]["name"] for tool in tools]
    for t, c in places:
        call = turns[t].calls[c]
        yield Mutant("call dropped", _with(turns, t, c, []), (t, c))
        told = turns[t].model_copy(update={"content": json.dumps(call.model_dump())})
        yield Mutant("call told", _with([*turns[:t], told, *turns[t + 1 :]], t, c, []), (t, c))
        yield Mutant("call repeated", _with(turns, t, c, [call, call]), (t, c))
        for name in names:
            if name != call.name:
                yield Mutant("tool changed", _with(turns, t, c, [call.model_copy(update={"name": name})]), (t, c))
        for mutant in json_mutants(call.arguments):
            changed = call.model_copy(update={"arguments": mutant.value})
            yield Mutant(mutant.kind, _with(turns, t, c, [changed]), (t, c), mutant.path)
    for name in names:
        extra = Call(name=name)
        for t, turn in enumerate(turns):
            more = turn.model_copy(update={"calls": (*turn.calls, extra)})
            # after the last turn the conversation goes on by one: the tool answers, and the model says it again
            yield Mutant("call added", (*turns[:t], more, *(turns[t + 1 :] or (turn,))), (t, len(turn.calls)))
    for first, second in ((a, b) for i, a in enumerate(places) for b in places[i + 1 :]):
        one, other = (turns[t].calls[c] for t, c in (first, second))
        if one != other:
            yield Mutant("calls swapped", _with(_with(turns, *first, [other]), *second, [one]), first)
    if turns[-1].content:
        yield Mutant("silent end", (*turns[:-1], turns[-1].model_copy(update={"content": ""})))


def _with(turns: Sequence[Turn], t: int, c: int, calls: list[Call]) -> tuple[Turn, ...]:
    made = turns[t].calls
    changed = turns[t].model_copy(update={"calls": (*made[:c], *calls, *made[c + 1 :])})
    return (*turns[:t], changed, *turns[t + 1 :])


@dataclass(frozen=True)
class Changed:
    """A JSON value one change away from another."""

    kind: str
    path: tuple[str | int, ...]
    value: Any


def json_mutants(value: Any) -> Iterator[Changed]:
    """Every value that differs from an object or a list in one place.

    Kinds: `dropped` (a key, an element), `added` (a key, an element), `retyped` (the same in another JSON type),
    `changed` (another value of the same type), `emptied` (a text), `swapped` (two elements next to each other).
    """
    for path, node in _nodes(value):
        if isinstance(node, dict):
            yield _put(value, path, {**node, "extra_one": 1}, "added")
        if isinstance(node, list):
            yield _put(value, path, [*node, copy.deepcopy(node[-1]) if node else 1], "added")
            for i in range(len(node) - 1):
                if node[i] != node[i + 1]:
                    yield _put(value, path, [*node[:i], node[i + 1], node[i], *node[i + 2 :]], "swapped")
        if not path:
            continue
        yield Changed("dropped", path, _without(value, path))
        for other in _retyped(node):
            yield _put(value, path, other, "retyped")
        for other in _changed(node):
            yield _put(value, path, other, "changed")
        if isinstance(node, str) and node:
            yield _put(value, path, "", "emptied")


def _nodes(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield path, value
    inside: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for key, each in inside:
        yield from _nodes(each, (*path, key))


def _retyped(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [str(value).lower(), int(value)]
    if isinstance(value, int):
        return [str(value), float(value)]
    if isinstance(value, float):
        return [str(value)] + ([int(value)] if value.is_integer() else [])
    if isinstance(value, str):
        return [[value], *([int(value)] if value.isascii() and value.isdigit() else [])]
    if value is None:
        return ["null", "", 0]
    return [json.dumps(value)]


def _changed(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [other for other in (value + 1, -value) if other != value]
    return [f"{value}x"] if isinstance(value, str) else []


def _put(value: Any, path: tuple[str | int, ...], new: Any, kind: str) -> Changed:
    if not path:
        return Changed(kind, path, new)
    whole = copy.deepcopy(value)
    _parent(whole, path)[path[-1]] = new
    return Changed(kind, path, whole)


def _without(value: Any, path: tuple[str | int, ...]) -> Any:
    whole = copy.deepcopy(value)
    del _parent(whole, path)[path[-1]]
    return whole


def _parent(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value
