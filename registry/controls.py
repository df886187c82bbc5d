"""The control that tells apart what two candidates differ in, and how to make it.

Two variables changed at once: whatever the scores say, nobody knows which of the two did it. A control has some of the
differing settings from one side and the rest from the other, so that a comparison with it changes less.

Pure: chains (`registry.history`) in, sentences and recipes out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from registry import history
from registry.history import BASE, CALIBRATED, Chain, Difference
from registry.manifests import Inputs
from registry.recipes import MAKES, Prune, Quantize, Train

_FIELDS = {"prune": Prune.model_fields, "train": Train.model_fields, "quantize": Quantize.model_fields}
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclass(frozen=True, slots=True)
class Side:
    """A candidate by name, with its chain."""

    name: str
    chain: Chain


@dataclass(frozen=True, slots=True)
class Control:
    """A candidate between two others.

    `takes` says in words what it is made of. `name` is set if it is in the registry; otherwise `recipe` makes it.
    `tells` is what a comparison of it with each side can tell, by that side's name.
    """

    takes: str
    name: str | None
    recipe: str | None
    tells: dict[str, str]


def controls(
    left: Side,
    right: Side,
    others: Sequence[Side],
    *,
    packs: Sequence[str] = (),
    mixes: Mapping[str, str] | None = None,
) -> list[Control]:
    """Every candidate of `others` that stands between `left` and `right`; if there is none, the one that is missing.

    Nothing, where the two differ in one field at most: then no control is needed. Of the controls that could be made it
    is the one that takes the other's mix (a mix decides more than all else) and keeps the gentler depth.

    Args:
        others: all candidates; those of left and right among them do no harm.
        packs: what the control is to be evaluated on.
        mixes: the files of mixes by their names, where they are known; mixes/NAME.yaml otherwise.
    """
    found = _differences(left.chain, right.chain)
    if len(found) < 2:
        return []
    others = list({other.chain[0][0]: other for other in reversed(others)}.values())[::-1]  # of several names the first
    there = [control for other in others if (control := _between(left, right, other, found)) is not None]
    return there or [_missing(left, right, found, others, packs, mixes or {})]


def _differences(one: Chain, other: Chain) -> dict[str, Difference]:
    return {each.field: each for each in history.differences(history.settings(one), history.settings(other))}


def _between(left: Side, right: Side, other: Side, found: Mapping[str, Difference]) -> Control | None:
    """`other` as a control: each differing setting is one of the two sides', and from one side it differs in one."""
    near, far = _differences(left.chain, other.chain), _differences(other.chain, right.chain)
    parted = near.keys() | far.keys() == found.keys() and not near.keys() & far.keys()
    if not parted or not near or not far or min(len(near), len(far)) > 1:
        return None
    return Control(
        takes=_takes(left, right, found, from_right=near.keys()),
        name=other.name,
        recipe=None,
        tells={side.name: history.conclusion(list(each.values())) for side, each in ((left, near), (right, far))},
    )


def _missing(
    left: Side,
    right: Side,
    found: Mapping[str, Difference],
    others: Sequence[Side],
    packs: Sequence[str],
    mixes: Mapping[str, str],
) -> Control:
    kept, given = (right, left) if _experts_left(left) < _experts_left(right) else (left, right)
    changed = min(found, key=_rank)
    rest = [each for field, each in found.items() if field != changed]
    return Control(
        takes=_takes(left, right, found, from_right={changed} if kept is left else found.keys() - {changed}),
        name=None,
        recipe=_recipe(kept, given, changed, {side.chain[0][0]: side.name for side in others}, packs, mixes),
        tells={kept.name: history.conclusion([found[changed]]), given.name: history.conclusion(rest)},
    )


def _experts_left(side: Side) -> float:
    """The share of experts that a candidate still has of those of its base model."""
    return side.chain[0][1].shape.experts / side.chain[-1][1].shape.experts


def _rank(field: str) -> tuple[int, str]:
    """What the control changes: the mix before all else; the depth, and code that nobody chose, last."""
    return {"mix": 0, "compression": 2, "code": 3}.get(field.partition(".")[2], 1), field


def _takes(left: Side, right: Side, found: Mapping[str, Difference], *, from_right: Any) -> str:
    parts = []
    for field in sorted(found, key=_rank):
        side, value = (right, found[field].right) if field in from_right else (left, found[field].left)
        whole = isinstance(value, Mapping) and "." not in field  # a step: its settings are shown above
        parts.append(f"{found[field].word} as {side.name}" + ("" if whole else f": {history.shown(value)}"))
    return "; ".join(parts)


def _recipe(
    kept: Side, given: Side, changed: str, names: Mapping[str, str], packs: Sequence[str], mixes: Mapping[str, str]
) -> str:
    """`kept` with one setting of `given`, as recipes and commands that start from what is made already."""
    base, *rest = _hybrid(kept.chain, given.chain, changed)
    parent, lines = names.get(base.digest or ""), []
    if parent is None:
        parent = "NAME-OF-THE-BASE"
        lines = [f"# the base model {(base.digest or '')[:12]} has no name here: give it one with registry add"]
    segments = list(_segments(rest))
    for number, segment in enumerate(segments, 1):
        made = names.get(segment[-1].digest or "")
        if made is not None and number < len(segments):
            parent = made
            continue
        own = _name(kept, given, changed) + (f".{number}" if number < len(segments) else "")
        if segment[0].op == "derive":
            files = segment[0].inputs.settings["replaced"]
            words = " ".join(f"--replace {file}=PATH" for file in files)
            digests = ", ".join(digest[:12] for digest in files.values())
            lines.append(f"# then: registry derive {parent} {own} {words}  # {digests}")
        else:
            lines += ["---"] * (number > 1 and any(line.startswith("name:") for line in lines))
            lines += [f"name: {own}", f"parent: {parent}", "steps:"]
            lines += [f"  - {_written(step.inputs, mixes)}" for step in segment]
        parent = own
    if packs and segments:
        evaluated = f"evaluate: {{packs: [{', '.join(packs)}]}}"
        lines.append(f"# then: {evaluated}" if segments[-1][0].op == "derive" else f"  - {evaluated}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of the control; `digest` names the manifest that it made, if it is made already."""

    label: str
    inputs: Inputs
    digest: str | None

    @property
    def op(self) -> str:
        return self.inputs.op

    @property
    def work(self) -> tuple[Any, ...]:
        """What is to be done, whatever it is done to."""
        return self.inputs.op, self.inputs.settings, self.inputs.mix, self.inputs.seed


def _hybrid(kept: Chain, given: Chain, changed: str) -> list[_Step]:
    """The steps of `kept`, oldest first, with the setting `changed` as `given` has it."""
    mine, theirs = _steps(kept), _steps(given)
    step, _, key = changed.partition(".")
    files, other_files = _files(kept), _files(given)
    plan = [each for each in mine if each.op != "derive"]
    if changed == BASE:
        plan[0] = theirs[0]
    elif step == "derive":
        files["derive"] = _with(files["derive"], other_files["derive"], key)
    elif key.startswith(CALIBRATED):
        files[step] = _with(files[step], other_files[step], key.removeprefix(CALIBRATED))
    elif key:
        other = next(each for each in theirs if each.label == step)
        plan = [_changed(each, other, key) if each.label == step else each for each in plan]
    elif any(each.label == step for each in plan):
        plan = [each for each in plan if each.label != step]
    else:
        plan += [each for each in theirs if each.label == step]
        plan[1:] = sorted(plan[1:], key=lambda each: MAKES.index(each.op) if each.op in MAKES else len(MAKES))
        files |= {step: other_files[step]} if step in other_files else {}
    plan = list(_with_derivations(plan, files, given if changed == BASE else kept))
    same = 0
    while same < min(len(plan), len(mine)) and plan[same].work == mine[same].work:
        same += 1
    made = [plan[0].digest, *(mine[number].digest if number < same else None for number in range(1, len(plan)))]
    return [replace(each, digest=digest) for each, digest in zip(plan, made, strict=True)]


def _files(chain: Chain) -> dict[str, dict[str, str]]:
    """The replaced files with which each prune read its mix, and under `derive` those of the candidate itself."""
    found = {label: history.calibrated_with(chain, number) for label, number in history.steps(chain)}
    read = {label for label, number in history.steps(chain) if chain[number][1].inputs.mix is not None}
    return {label: files for label, files in found.items() if label in read} | {"derive": history.replaced(chain)}


def _with(mine: dict[str, str], theirs: dict[str, str], file: str) -> dict[str, str]:
    rest = {name: digest for name, digest in mine.items() if name != file}
    return rest | ({file: theirs[file]} if file in theirs else {})


def _with_derivations(plan: list[_Step], files: dict[str, dict[str, str]], base: Chain) -> Iterator[_Step]:
    """`plan`, with a derivation before each step that needs other files, and one at the end."""
    own = {name: file.digest for name, file in base[-1][1].files.items()}
    now: dict[str, str] = {}
    for step in [*plan, None]:
        wanted = files["derive"] if step is None else files.get(step.label)
        if wanted is not None and wanted != now:
            back = {file: own[file] for file in now.keys() - wanted.keys() if file in own}
            settings = {"replaced": back | {file: each for file, each in wanted.items() if now.get(file) != each}}
            inputs = Inputs(op="derive", parent=None, settings=settings, code="")
            now = wanted
            yield _Step("derive", inputs, None)
        if step is not None:
            yield step


def _steps(chain: Chain) -> list[_Step]:
    return [_Step(label, chain[number][1].inputs, chain[number][0]) for label, number in history.steps(chain)]


def _changed(step: _Step, other: _Step, key: str) -> _Step:
    if key in ("mix", "seed", "code"):
        return replace(step, inputs=step.inputs.model_copy(update={key: getattr(other.inputs, key)}))
    keys = history.TOGETHER.get(key, (key,)) if step.op == "train" else (key,)
    settings = {name: value for name, value in step.inputs.settings.items() if name not in keys}
    settings |= {name: value for name, value in other.inputs.settings.items() if name in keys}
    return replace(step, inputs=step.inputs.model_copy(update={"settings": settings}))


def _segments(steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    """The steps as recipes can hold them: each kind once and in order; a derivation is a command of its own."""
    segment: list[_Step] = []
    for step in steps:
        fits = (
            segment and {segment[-1].op, step.op} <= set(MAKES) and MAKES.index(step.op) > MAKES.index(segment[-1].op)
        )
        if segment and not fits:
            yield segment
            segment = []
        segment.append(step)
    if segment:
        yield segment


def _written(inputs: Inputs, mixes: Mapping[str, str]) -> str:
    """A step as a recipe has it: {prune: {compression: 0.289, …}} in YAML."""
    given = {key: value for key, value in inputs.settings.items() if key in _FIELDS.get(inputs.op, inputs.settings)}
    if inputs.mix is not None:
        given["mix"] = mixes.get(inputs.mix.name, f"mixes/{inputs.mix.name}.yaml")
    if inputs.op == "train":
        name = given["reference"]["name"]
        given["reference"] = mixes.get(name, f"mixes/{name}.yaml")
    if inputs.seed is not None:
        given["seed"] = inputs.seed
    return (
        f"{inputs.op}: {{{', '.join(f'{key}: {_value(value)}' for key, value in given.items() if value is not None)}}}"
    )


def _value(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value  # a decimal stays as it was written
    return json.dumps(value, ensure_ascii=False)


def _name(kept: Side, given: Side, changed: str) -> str:
    """A name for the control, such as v3-mix-of-mix-a, short enough to be one."""
    word = re.sub(r"[^a-z0-9]+", "-", history.word(changed).lower())
    return f"{kept.name[:24]}-{word[:14]}-of-{given.name[:20]}"
