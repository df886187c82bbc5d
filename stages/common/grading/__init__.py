"""Points for what a model answered. Pure: no I/O, no model; raw responses that were kept are graded again alike.

Each module here with a function `grade` is a grader, and a pack names it (`grader: tool-call` is tool_call.py). It has

    VERSION: int     raised whenever any answer would get other points than before
    Item             what an item of such a pack looks like: a class of its own over `items.Item`
    grade(item, answers, results) -> Grade
    reply(item, answers) -> list[Message] | None          optional; without it one answer ends the conversation
    executions(item, answers) -> tuple[Execution, ...]    optional; code of the model's, to be run in the verifier

`answers` are the model's turns so far, all of them whole: what every grader would have to look at is settled here. A
response that has not the shape of a chat completion ends the item at 0 as `model_error`, one that was cut off by the
limit on tokens as `truncated`, code that ran out of time (again, when it was run alone) as `verifier_timeout`. Whether
the server answered at all is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gates import canonical
from gates.errors import UsageError
from stages.common.grading.answers import Answer, Message, read
from stages.common.grading.items import Grade, Item

if TYPE_CHECKING:
    from stages.common.execution import Execution, Result


@dataclass(frozen=True, slots=True)
class Grader:
    """One of the modules, under the name that packs give it."""

    name: str
    module: ModuleType

    @property
    def item(self) -> type[Item]:
        """What its items are read as."""
        return self.module.Item

    @property
    def executes(self) -> bool:
        """Whether its packs have the verifier run what the model wrote."""
        return hasattr(self.module, "executions")

    @property
    def digest(self) -> str:
        """What evidence records of the grader: its name and version, and the verifier's revision where it uses that."""
        settled: dict[str, Any] = {"grader": self.name, "version": self.module.VERSION}
        if self.executes:
            from stages.common import execution

            settled["verifier"] = execution.REVISION
        return canonical.digest(canonical.dumps(settled))

    def reply(self, item: Item, responses: Sequence[Any]) -> list[Message] | None:
        """What the conversation goes on with, the assistant's own turn first; None where it is over.

        Args:
            responses: the raw bodies of all answers so far, one or more.
        """
        answers = _whole(responses)
        if isinstance(answers, Grade) or not hasattr(self.module, "reply"):
            return None
        return self.module.reply(item, answers)

    def executions(self, item: Item, responses: Sequence[Any]) -> tuple[Execution, ...]:
        """What the verifier is to run before the finished conversation can be graded."""
        answers = _whole(responses)
        if isinstance(answers, Grade) or not self.executes:
            return ()
        return self.module.executions(item, answers)

    def grade(self, item: Item, responses: Sequence[Any], results: Mapping[str, Result] | None = None) -> Grade:
        """
        Args:
            responses: the raw bodies of all answers of a finished conversation: any JSON values.
            results: what came of each of `executions`, by its digest.
        """
        answers = _whole(responses)
        if isinstance(answers, Grade):
            return answers
        results = results or {}
        if any(result.outcome == "timeout" for result in results.values()):
            return Grade(0, "verifier_timeout")
        return self.module.grade(item, answers, results)


def grader(name: str) -> Grader:
    """
    Raises:
        UsageError: there is no grader of that name.
    """
    stem = name.replace("-", "_")
    if stem in _stems() and hasattr(module := import_module(f"{__name__}.{stem}"), "grade"):
        return Grader(name, module)
    raise UsageError(f"there is no grader {name}", remedy=f"the graders are {', '.join(names())}")


def names() -> list[str]:
    """The graders that there are."""
    return [stem.replace("_", "-") for stem in _stems() if hasattr(import_module(f"{__name__}.{stem}"), "grade")]


def _stems() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def _whole(responses: Sequence[Any]) -> tuple[Answer, ...] | Grade:
    """The answers, or what the item is worth already because one of them is none."""
    answers = tuple(read(response) for response in responses)
    whole = tuple(answer for answer in answers if answer is not None)
    if not answers or len(whole) < len(answers):
        return Grade(0, "model_error", "a response is no chat completion")
    if any(answer.truncated for answer in whole):
        return Grade(0, "truncated")
    return whole
