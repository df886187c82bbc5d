"""A registry for the real server: the toy, what was pruned from it, and a model that was never trained."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.store import Store

PACKS = "[toy-toolcall, toy-arithmetic, toy-facts, toy-strings]"
RECIPE = "name: {name}\nparent: {parent}\nsteps:\n  - evaluate: {{packs: {packs}, engine: {engine}{more}}}\n"


@dataclass(frozen=True)
class Place:
    """A registry, and recipes beside the checkout's own packs."""

    project: Path
    root: Path
    recipes: Path

    @property
    def store(self) -> Store:
        return Store.open(self.root)

    def recipe(self, name: str, parent: str, engine: str, packs: str = PACKS, **more: str) -> Path:
        words = "".join(f", {key}: {value}" for key, value in more.items())
        path = self.recipes / f"{name}.yaml"
        path.write_text(RECIPE.format(name=name, parent=parent, packs=packs, engine=engine, more=words))
        return path

    def command(self, recipe: Path, *words: str) -> list[str]:
        stage = [sys.executable, "-P", "-m", "stages.evaluate", "--root", str(self.root)]
        return [*stage, "--project", str(self.project), "--recipe", str(recipe), *words]

    def evaluate(self, recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(recipe, *words), env=self.environment, capture_output=True, text=True, check=False
        )

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ | {"PYTHONPATH": str(self.project)}


def untrained(source: Path, target: Path, **files: str) -> Path:
    """The checkpoint with every weight drawn at random, and `files` in place of its own."""
    shutil.copytree(source, target)
    weights = target / "model.safetensors"
    data = bytearray(weights.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    draw = random.Random(0)
    for place in range(begin, len(data), 2):  # BF16 of either sign, from 1/64 to 1/32
        data[place : place + 2] = struct.pack("<H", draw.choice((0x3C80, 0xBC80)) | draw.getrandbits(7))
    weights.write_bytes(data)
    for name, text in files.items():
        (target / name.replace("_json", ".json").replace("_jinja", ".jinja")).write_text(text)
    return target


@pytest.fixture(scope="session")
def place(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    base = tmp_path_factory.mktemp("vllm")
    recipes = base / "recipes"
    recipes.mkdir()
    toy = project / "stages" / "toy" / "checkpoint"
    store = Store.init(base / "models")
    store.add("toy", toy)
    store.add("untrained", untrained(toy, base / "untrained"))
    template = (toy / "chat_template.jinja").read_text()
    closing = template[template.index("{%- if enable_thinking is defined") :].partition("{%- endif %}")
    closing = closing[0] + closing[1]
    assert closing in template
    templates = {
        "always-thinks": template.replace(closing, ""),
        "leaks": template.replace(closing, "{{- '<think>\\n' }}"),
    }
    for name, text in templates.items():
        store.add(name, untrained(toy, base / name, chat_template_jinja=text))
    return Place(project, base / "models", recipes)


def answers(place: Place, candidate: str, engine: str) -> dict[str, dict[str, object]]:
    """What the candidate said on an engine: by pack and item, reasoning, content and calls, without the white space
    around them, in which servers differ."""
    store, said = place.store, {}
    for evidence in store.evidence(store.candidate(candidate).digest).values():
        if evidence.conditions.engine != engine:
            continue
        assert evidence.responses is not None
        lines = map(json.loads, store.read(evidence.responses).splitlines())
        said[evidence.pack] = {line["item"]: _plain(line["responses"][0]["choices"][0]["message"]) for line in lines}
    return said


def _plain(message: dict[str, object]) -> object:
    calls = message.get("tool_calls") or []
    assert isinstance(calls, list)
    functions = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    return str(message.get("reasoning") or "").strip(), str(message.get("content") or "").strip(), functions
