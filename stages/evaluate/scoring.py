"""What answers are worth: rows, the running score, and the answers in the form in which evidence keeps them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import IntegrityError
from gates.records import Row
from stages.common.grading.items import Grade, Item
from stages.evaluate.journal import Answer, Key
from stages.evaluate.packs import Pack

if TYPE_CHECKING:
    from stages.common.execution import Execution


@dataclass(frozen=True, slots=True)
class Results:
    """Evidence in the making: rows in the order of item and repeat, and the answers in the same order."""

    rows: tuple[Row, ...]
    responses: bytes
    """One JSON value a line: item, repeat, the raw responses, and what came of the code in them."""

    @property
    def rows_bytes(self) -> bytes:
        return b"".join(row.to_bytes() + b"\n" for row in self.rows)


def results(pack: Pack, repeats: int, answers: Mapping[Key, Answer]) -> Results:
    """An item without an answer is missing (`infra`), and so is one with code that there was no verifier to run."""
    rows, lines = [], []
    for item in sorted(pack.items, key=lambda item: item.id):
        for repeat in range(repeats):
            answer = answers.get((item.id, repeat))
            rows.append(_row(pack, item, repeat, answer))
            if answer is not None:
                lines.append(canonical.dumps(_kept(answer)) + b"\n")
    return Results(tuple(rows), b"".join(lines))


def kept_answers(responses: bytes, *, where: str) -> dict[Key, Answer]:
    """The answers that evidence keeps.

    Raises:
        IntegrityError: they are not in the form of `results`.
    """
    answers = {}
    for number, line in enumerate(responses.splitlines(), 1):
        try:
            value = canonical.loads(line)
            answer = Answer(value["item"], value["repeat"], tuple(value["responses"]), 0.0, dict(value["executions"]))
        except (IntegrityError, KeyError, TypeError, ValueError):
            raise IntegrityError(f"line {number} of the kept responses is no answer to an item", where=where) from None
        answers[answer.key] = answer
    return answers


def pending(pack: Pack, item: Item, answer: Answer) -> list[Execution]:
    """What the verifier has yet to run of an answer."""
    wanted = pack.grader.executions(item, answer.responses)
    return [execution for execution in wanted if execution.digest not in answer.executions]


def grade(pack: Pack, item: Item, answer: Answer) -> Grade | None:
    """None if the verifier has yet to run something."""
    wanted = [execution.digest for execution in pack.grader.executions(item, answer.responses)]
    if not wanted:
        return pack.grader.grade(item, answer.responses)
    if not all(digest in answer.executions for digest in wanted):
        return None
    from stages.common.execution import Result

    ran = {digest: Result.from_json(answer.executions[digest]) for digest in wanted}
    return pack.grader.grade(item, answer.responses, ran)


class RunningScore:
    """A pack's score so far, for the progress bar."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._items = {item.id: item for item in pack.items}
        self._points = self._of = 0.0

    def add(self, answer: Answer) -> None:
        item = self._items[answer.item]
        graded = grade(self._pack, item, answer)
        if graded is not None:
            self._points += graded.points
            self._of += item.of

    @property
    def note(self) -> str:
        return f"{self._pack.name} {100 * self._points / self._of:.1f}" if self._of else self._pack.name


def _row(pack: Pack, item: Item, repeat: int, answer: Answer | None) -> Row:
    graded = None if answer is None else grade(pack, item, answer)
    if answer is None or graded is None:
        return Row(item=item.id, repeat=repeat, category=item.category, of=item.of, outcome="infra")
    return Row(
        item=item.id,
        repeat=repeat,
        category=item.category,
        points=graded.points,
        of=item.of,
        outcome=graded.outcome,
        tokens=answer.tokens,
        response=canonical.digest(canonical.dumps(list(answer.responses))),
    )


def _kept(answer: Answer) -> dict[str, object]:
    return {
        "item": answer.item,
        "repeat": answer.repeat,
        "responses": list(answer.responses),
        "executions": dict(answer.executions),
    }
