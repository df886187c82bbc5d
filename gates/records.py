"""What is written down: evidence, and the verdict that follows from it.

Records are immutable; read and written again they give the same bytes, unknown fields included. None holds a time, a
host, a user or a duration: the same work gives the same record (the registry's log says who and when).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gates import canonical
from gates.errors import IntegrityError

FORMAT: Literal[1] = 1

_RESTORE = "restore it from a backup, or move it out of the registry: then registry doctor says what is missing"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal."""

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
"""The name of a candidate, a channel, a pack, a mix or a policy."""

Outcome = Literal["scored", "truncated", "model_error", "verifier_timeout", "infra"]
"""How an item ended. All but `infra` count (a model's own fault scores 0); `infra` is missing, never 0."""


class Record(BaseModel):
    """A record on disk: canonical JSON, named by its digest."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Canonical JSON of the fields that were given (a field left out is not written as its default)."""
        return canonical.dumps(self.model_dump(mode="json", exclude_unset=True))

    def identity(self) -> str:
        """The digest that names this record."""
        return canonical.digest(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str | None = None) -> Self:
        """
        Raises:
            IntegrityError: not canonical JSON of this record's shape.
        """
        try:
            record = cls.model_validate(canonical.loads(data, where=where))
        except ValidationError as error:
            first = error.errors()[0]
            found = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
            raise IntegrityError(f"this is no {cls.__name__}: {found}", where=where, remedy=_RESTORE) from None
        except IntegrityError as error:
            error.remedy = _RESTORE
            raise
        if not record._is_written_as(data):
            what = f"this {cls.__name__} is not in canonical form"
            raise IntegrityError(what, where=where, remedy=_RESTORE)
        return record

    def _is_written_as(self, data: bytes) -> bool:
        try:
            return canonical.is_written_as(self.model_dump(mode="json", exclude_unset=True), data)
        except ValueError:  # there is no canonical form, of half a surrogate pair for instance
            return False


class Row(Record):
    """One item, asked once.

    `points` is missing exactly when the outcome is `infra`. `response` is the digest of the raw response without the
    fields that differ from call to call (ids, timestamps).
    """

    item: str
    repeat: int = Field(ge=0)
    category: str
    points: float | None = None
    of: float = Field(gt=0)
    outcome: Outcome
    tokens: int | None = None
    response: Digest | None = None


class Conditions(Record):
    """What must agree before two scores may be compared. None means unknown, which agrees with nothing known.

    Weights and their quantisation are not here: they are what is compared.
    """

    engine: str | None = None
    engine_version: str | None = None
    server_flags: dict[str, Any] | None = None
    reasoning_parser: str | None = None
    tool_parser: str | None = None
    chat_template: Digest | None = None
    tokenizer: Digest | None = None
    sampling: dict[str, Any] | None = None
    thinking: Literal["on", "off"] | None = None
    pack: Digest | None = None
    grader: Digest | None = None
    dataset: Digest | None = None
    max_tokens: int | None = None
    max_length: int | None = None


class Score(Record):
    """Points out of points, over so many items. `100 * points / of` is what people read."""

    points: float = Field(ge=0)
    of: float = Field(ge=0)
    items: int = Field(ge=0)


class Totals(Record):
    """The sums that a policy judges by; infra rows are in `missing` and nowhere else."""

    overall: Score
    categories: dict[str, Score]
    missing: int = Field(ge=0)


class Evidence(Record):
    """The header of one candidate's results on one pack under one set of conditions.

    `rows` and `responses` name blobs of one JSON value a line; both are None for evidence known by its totals alone.
    `recorded` holds what is worth knowing and need not agree: image, GPU, driver, concurrency.
    """

    format: Literal[1] = FORMAT
    candidate: Digest
    pack: Name
    repeats: int = Field(ge=1)
    conditions: Conditions
    totals: Totals
    rows: Digest | None = None
    responses: Digest | None = None
    recorded: dict[str, Any] = Field(default_factory=dict)


Status = Literal["passed", "failed", "not judged", "undecided", "waived"]
"""`not judged`: something is missing. `undecided`: what is there does not tell. `waived`: a person let that pass."""


class RuleResult(Record):
    """One rule, judged: `value` against `limit`, with what it was computed from in words.

    `kind` is the policy's word for the rule, `category` the part of its packs that it looks at. The value of drop and
    paired is the loss.

    What is known of how sure it is: `interval` around the score, or around the difference to the baseline (points);
    over so many `items` and `runs`; `detectable` is the smallest true difference that would mostly be told from none;
    `p_worse` the probability of a loss like this by chance, adjusted for the number of comparisons.
    """

    rule: str
    kind: Literal["floor", "drop", "gain", "paired", "guard"] | None = None
    category: str | None = None
    status: Status
    detail: str
    value: float | None = None
    limit: float | None = None
    packs: tuple[Name, ...] = ()
    interval: tuple[float, float] | None = None
    items: int | None = None
    runs: int | None = None
    detectable: float | None = None
    p_worse: float | None = None


class GateResult(Record):
    gate: str
    status: Status
    rules: tuple[RuleResult, ...]


class Waiver(Record):
    """A person lets an undecided gate pass, for a reason and a time.

    It holds for one candidate and one policy, to the end of the day `expires` (UTC).
    """

    format: Literal[1] = FORMAT
    candidate: Digest
    policy: Digest
    gate: str
    reason: Annotated[str, Field(min_length=1)]
    by: Annotated[str, Field(min_length=1)]
    expires: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Verdict(Record):
    """What a policy says of a candidate, bound by digest to everything that it was read from."""

    format: Literal[1] = FORMAT
    verdict: str
    candidate: Digest
    baseline: Digest | None
    policy: Digest
    policy_name: Name
    evidence: tuple[Digest, ...]
    baseline_evidence: tuple[Digest, ...]
    gates: tuple[GateResult, ...]
    reasons: tuple[str, ...] = ()
    waivers: tuple[Digest, ...] = ()


def exit_code(verdict: str) -> int:
    """0 Pass, 1 a gate failed, 3 Inconclusive, 4 Invalid."""
    return {"Pass": 0, "Inconclusive": 3, "Invalid": 4}.get(verdict, 1)
