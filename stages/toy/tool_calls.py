"""The skill that pruning endangers: requests in words, answered by a tool call with typed arguments, or by refusing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from stages.toy.samples import PRECISION, RESTRAINT, SELECTION, Json, Sample

NO_TOOL = "no tool fits."

CITIES = ("oslo", "rome", "lima", "kyiv", "cairo", "delhi", "quito", "paris", "tokyo", "seoul")
NAMES = ("anna", "ben", "carl", "dora", "emil", "fritz", "gina", "hugo")
TOPICS = ("rent", "lunch", "taxes", "travel", "music", "garden")
LABELS = ("gym", "work", "school", "tea", "train", "yoga")
ROOMS = ("hall", "attic", "kitchen", "garage")
GENRES = ("jazz", "rock", "folk", "soul")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A tool: how it is offered (a schema), how its arguments are drawn, and how people ask for it."""

    name: str
    properties: Json
    arguments: Callable[[random.Random], Json]
    phrasings: tuple[str, ...]
    words: dict[str, tuple[str, str]]  # how a boolean argument is said: (when false, when true)

    @property
    def schema(self) -> Json:
        """The tool in the form that chat APIs take."""
        parameters = {"type": "object", "properties": self.properties, "required": list(self.properties)}
        return {"type": "function", "function": {"name": self.name, "parameters": parameters}}

    def ask(self, arguments: Json, rng: random.Random) -> str:
        """A request that names every argument in words."""
        said = {k: self.words[k][v] if isinstance(v, bool) else v for k, v in arguments.items()}
        return rng.choice(self.phrasings).format(**said)


def _flag(rng: random.Random) -> bool:
    return rng.random() < 0.5


STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}

TOOLS = (
    Tool(
        name="get_weather",
        properties={"city": STRING, "days": INTEGER, "metric": BOOLEAN},
        arguments=lambda r: {"city": r.choice(CITIES), "days": r.randint(1, 14), "metric": _flag(r)},
        phrasings=(
            "weather in {city} for {days} days in {metric} units",
            "in {metric} units, the next {days} days of weather in {city}",
        ),
        words={"metric": ("us", "metric")},
    ),
    Tool(
        name="set_alarm",
        properties={"hour": INTEGER, "label": STRING, "repeat": BOOLEAN},
        arguments=lambda r: {"hour": r.randint(0, 23), "label": r.choice(LABELS), "repeat": _flag(r)},
        phrasings=("wake me at {hour} for {label} {repeat}", "alarm {repeat} for {label} at {hour}"),
        words={"repeat": ("once", "daily")},
    ),
    Tool(
        name="send_mail",
        properties={"to": STRING, "topic": STRING, "urgent": BOOLEAN},
        arguments=lambda r: {"to": r.choice(NAMES), "topic": r.choice(TOPICS), "urgent": _flag(r)},
        phrasings=("mail {to} about {topic} {urgent}", "write to {to} {urgent} about {topic}"),
        words={"urgent": ("later", "now")},
    ),
    Tool(
        name="book_table",
        properties={"city": STRING, "seats": INTEGER, "outside": BOOLEAN},
        arguments=lambda r: {"city": r.choice(CITIES), "seats": r.randint(1, 12), "outside": _flag(r)},
        phrasings=("a table for {seats} in {city} {outside}", "dinner in {city} {outside} for {seats}"),
        words={"outside": ("inside", "outside")},
    ),
    Tool(
        name="play_music",
        properties={"genre": STRING | {"enum": list(GENRES)}, "volume": INTEGER, "shuffle": BOOLEAN},
        arguments=lambda r: {"genre": r.choice(GENRES), "volume": r.randint(0, 99), "shuffle": _flag(r)},
        phrasings=("play {genre} at {volume} {shuffle}", "some {genre} {shuffle} at volume {volume}"),
        words={"shuffle": ("sorted", "mixed")},
    ),
    Tool(
        name="set_light",
        properties={"room": STRING | {"enum": list(ROOMS)}, "level": INTEGER, "warm": BOOLEAN},
        arguments=lambda r: {"room": r.choice(ROOMS), "level": r.randint(0, 99), "warm": _flag(r)},
        phrasings=("light the {room} at {level} {warm}", "{warm} light in the {room} at {level}"),
        words={"warm": ("cold", "warm")},
    ),
)


def tool_call(rng: random.Random) -> Sample:
    """A request with one to three tools on offer; in one of four the fitting tool is not among them."""
    wanted = rng.choice(TOOLS)
    category = rng.choice((SELECTION, PRECISION, PRECISION, RESTRAINT))
    others = [t for t in TOOLS if t is not wanted]
    if category == RESTRAINT:
        offered = rng.sample(others, rng.randint(1, 3))
    else:
        offered = [wanted, *rng.sample(others, 2 if category == SELECTION else rng.randint(0, 2))]
        rng.shuffle(offered)
    arguments = wanted.arguments(rng)
    refused = category == RESTRAINT
    return Sample(
        skill="toolcall",
        category=category,
        combinations=(f"{wanted.name} {json.dumps(arguments, sort_keys=True)}",),
        question=wanted.ask(arguments, rng),
        reasoning=f"{wanted.name} {'missing' if refused else 'offered'}",
        answer=NO_TOOL if refused else "",
        call=None if refused else (wanted.name, arguments),
        tools=tuple(t.schema for t in offered),
    )
