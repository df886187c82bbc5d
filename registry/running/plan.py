"""What would run: the tasks that a recipe's steps come to, in order. Nothing here touches a file or a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from registry.recipes import Recipe


@dataclass(frozen=True, slots=True)
class Program:
    """A stage that does a kind of step, in both of its places."""

    environment: str
    """Outside of containers: a folder of the project."""
    service: str
    """In containers: the name in compose.yaml."""
    mixes: tuple[str, ...] = ()
    """The settings that name mixes. A stage that reads one has a --freeze."""
    preflight: bool = True
    """Whether it has a --preflight."""


KINDS: Mapping[str, Program] = {
    "prune": Program(".venv-prune", "prune", mixes=("mix",)),
    "train": Program(".venv-train", "train", mixes=("mix", "reference")),
    "quantize": Program(".venv-prune", "quantize", preflight=False),
    "evaluate": Program(".venv-eval", "eval"),
}
"""The kinds of step that a stage does. A gate and a promotion are done in this process: they only read and write
records."""

NETWORKED = "mix"
"""The service that fetches what a mix takes from the Hub: no stage has a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to do for a step. `path` is the recipe's file, relative to the project's folder where it lies there."""

    path: PurePosixPath
    recipe: Recipe
    number: int
    """Of the step, from 0."""
    freezes: bool = False
    """Whether the mix is fetched, and nothing else; its step is another task."""

    @property
    def kind(self) -> str:
        return self.recipe.steps[self.number].kind

    @property
    def settings(self) -> Any:
        return self.recipe.steps[self.number].settings

    @property
    def program(self) -> Program | None:
        """None for what is done in this process."""
        return KINDS.get(self.kind)

    @property
    def candidate(self) -> str:
        """What is made, or worked on."""
        return self.recipe.candidate_of(self.number)

    @property
    def source(self) -> str:
        return self.recipe.input_of(self.number)

    @property
    def title(self) -> str:
        """For people: v7b: prune (1 of 6)."""
        done = f"fetch the mix of {self.kind}" if self.freezes else self.kind
        return f"{self.recipe.name}: {done} ({self.number + 1} of {len(self.recipe.steps)})"

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.path}, step {self.number + 1} ({self.kind})"

    def words(self, *, replace: bool) -> list[str]:
        """What the stage is told, wherever it runs, apart from where things lie there."""
        return self._words + ["--replace"] * (replace and not self.freezes)  # who fetches begins nothing

    def preflight(self, *, replace: bool, instead: str | None) -> list[str]:
        """The same for a look before anything begins.

        Args:
            instead: a candidate that is there, where the step's source is still to be made: then mixes are read, each
                row, and nothing is said of the model, whose place it only takes.
        """
        if instead is not None:
            look = "--freeze" if self.program and self.program.mixes else "--preflight"
            return [*self._words, "--candidate", instead] + [look] * (not self.freezes)
        return self.words(replace=replace) + ["--preflight"] * (not self.freezes)

    @property
    def _words(self) -> list[str]:
        return ["--recipe", str(self.path), "--step", str(self.number + 1)]


@dataclass(frozen=True, slots=True)
class Line:
    """One recipe, and what is to be done for it."""

    recipe: Recipe
    tasks: list[Task]


def tasks(path: PurePosixPath, recipe: Recipe, hub: frozenset[int]) -> list[Task]:
    """The tasks of a recipe, in order: a step's mix is fetched before the step, if it is of the Hub.

    Args:
        hub: the numbers of the steps whose mixes name datasets of the Hub.
    """
    found = []
    for number in range(len(recipe.steps)):
        task = Task(path=path, recipe=recipe, number=number)
        if number in hub:
            found.append(Task(path=path, recipe=recipe, number=number, freezes=True))
        found.append(task)
    return found
