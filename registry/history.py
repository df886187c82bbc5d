"""What was decided about a candidate on the way from a downloaded model to it, and in which decisions two differ.

Pure: everything here is computed from manifests. A chain is a candidate's manifest and those that it was made from,
newest first, each with its digest (`registry.lineage.ancestry`). A setting has a field, such as `prune.mix`, which
belongs to a step; the second step of a kind is `prune#2`. A mix counts by its rows, whatever it was called, and two
depths are one if they leave as many experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.manifests import Manifest

Chain = Sequence[tuple[str, Manifest]]

BASE = "base"
CALIBRATED = "calibrated."
"""How the field of a file begins through which a prune read its mix: prune.calibrated.chat_template.jinja."""

TOGETHER = {"length": ("epochs", "max_steps"), "experts": ("experts", "double_quantization")}
"""Settings of a training that are one decision, by its field: how long, and in what the frozen experts are held."""

_WORDS = {
    BASE: "base model",
    "compression": "depth",
    "renormalize_router": "router renormalisation",
    "code": "code revision",
    "mtp": "treatment of the MTP head",
    "quantize": "quantisation",
    "quantize.format": "quantisation",
    "train": "training",
    "train.experts": "precision of the frozen experts",
    "train.length": "length of training",
    "train.lora": "LoRA settings",
    "train.mix": "training mix",
    "train.reference": "reference answers",
    "chat_template.jinja": "chat template",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer configuration",
    "generation_config.json": "generation configuration",
}
_RENDER = {
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
}
"""Through these files a model reads text."""
_NOT_COMPARED = {"stacked"}  # a permission, which changes no byte; the steps themselves say that there are two


@dataclass(frozen=True, slots=True)
class Setting:
    """Two are equal by `identity`, or by `effect` where it is known; `value` is how it is shown."""

    identity: Any
    value: Any
    effect: Any = None

    def same(self, other: Setting) -> bool:
        return self.identity == other.identity or (self.effect is not None and self.effect == other.effect)


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which two candidates differ, its word for people, and what it is in each (None: it has none).

    A step that only one of them has is one difference: its field is the step, and what it is its settings by name.
    """

    field: str
    word: str
    left: Any
    right: Any


def settings(chain: Chain) -> dict[str, Setting]:
    """Everything that made a candidate what it is, by field, the oldest step first."""
    found: dict[str, Setting] = {}
    for step, number in steps(chain):
        digest, manifest = chain[number]
        if step == BASE:
            files = manifest.inputs.settings.get("files", digest)
            found[BASE] = Setting(files, origin(manifest) or digest)
        elif step != "derive":
            found |= {f"{step}.{key}": value for key, value in _of_step(chain, number).items()}
    # the last one counts, wherever between the steps it was replaced
    return found | {f"derive.{file}": Setting(digest, digest[:12]) for file, digest in replaced(chain).items()}


def told(chain: Chain, number: int) -> dict[str, str]:
    """What the step at `number` did by itself, for people: its settings by their words."""
    digest, manifest = chain[number]
    op = manifest.inputs.op
    if op == "add":
        return {_WORDS[BASE]: shown(origin(manifest) or digest)}
    if op == "derive":
        return {_WORDS.get(file, file): shown(each) for file, each in manifest.inputs.settings["replaced"].items()}
    own = {key: setting.value for key, setting in _of_step(chain, number).items() if setting.value is not None}
    return {word(f"{op}.{key}").removesuffix(f" of {_WORDS.get(op, op)}"): shown(each) for key, each in own.items()}


def replaced(chain: Chain) -> dict[str, str]:
    """The files that were derived on the way, and now are others than those of the base model, by their digests."""
    found: dict[str, str] = {}
    for _, manifest in reversed(chain):
        if manifest.inputs.op == "derive":
            found |= manifest.inputs.settings["replaced"]
    own = chain[-1][1].files
    return {file: digest for file, digest in sorted(found.items()) if file not in own or own[file].digest != digest}


def calibrated_with(chain: Chain, number: int) -> dict[str, str]:
    """Of the `replaced` files those through which the step at `number` read its mix; none if it read none."""
    if chain[number][1].inputs.mix is None:
        return {}
    return {file: digest for file, digest in replaced(chain[number:]).items() if file in _RENDER}


def steps(chain: Chain) -> list[tuple[str, int]]:
    """The steps of a chain, oldest first, each with its place in the chain: base, prune, prune#2, quantize."""
    found, count = [], dict[str, int]()
    for number in reversed(range(len(chain))):
        op = chain[number][1].inputs.op
        count[op] = count.get(op, 0) + 1
        if op == "add":
            found.append((BASE, number))
        else:
            found.append((op if count[op] == 1 or op == "derive" else f"{op}#{count[op]}", number))
    return found


def differences(left: Mapping[str, Setting], right: Mapping[str, Setting]) -> list[Difference]:
    """The fields in which two candidates differ, given the settings of each. In the order of the steps."""
    found: dict[str, Difference] = {}
    alone = {step for step in _steps_of(left) ^ _steps_of(right) if step not in (BASE, "derive")}
    for field in dict.fromkeys((*left, *right)):
        step = step_of(field)
        if step in alone:
            found[step] = Difference(step, word(step), _whole(left, step), _whole(right, step))
        elif field not in left or field not in right or not left[field].same(right[field]):
            found[field] = Difference(field, word(field), _shown(left, field), _shown(right, field))
    return list(found.values())


def conclusion(found: Sequence[Difference]) -> str:
    """What a difference in scores can be put down to."""
    if not found:
        return "the same work: nothing that made them differs"
    words = [each.word for each in found]
    if len(found) == 1:
        tail = {"mix": " at equal depth", "depth": " with one mix"}.get(words[0], ": nothing else differs")
        return f"isolates the {words[0]}{tail}"
    listed = f"the {', the '.join(words[:-1])} and the {words[-1]} differ"
    return f"confounded: {listed}, so no difference in scores can be put down to one of them"


def word(field: str) -> str:
    """What people call a field: `prune.compression` is the depth, `prune#2.mix` the mix of prune 2."""
    step, _, key = field.partition(".")
    op, _, number = step.partition("#")
    if key.startswith(CALIBRATED):
        file = key.removeprefix(CALIBRATED)
        return f"{_WORDS.get(file, file)} of the calibration" + (f" of {op} {number}" if number else "")
    own = _WORDS.get(f"{op}.{key}")
    plain = own or _WORDS.get(key or op) or (key or op).replace("_", " ")
    if op not in ("prune", "derive", BASE) and key and not own:
        plain += f" of {_WORDS.get(op, op)}"
    return plain + (f" of {op} {number}" if number else "") if key else plain + (f" {number}" if number else "")


def flat(field: str, value: Any) -> dict[str, str]:
    """A setting for people, each of its parts under a name of its own: {"train.lora.rank": "16"}. A digest is shown by
    its beginning, and what is None is not there.
    """
    if isinstance(value, Mapping):
        return {
            name: shown
            for key, part in value.items()
            for name, shown in flat(f"{field}.{key}" if field else str(key), part).items()
        }
    text = str(value).lower() if isinstance(value, bool) else str(value)  # as recipes have it
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else text
    text = text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text
    return {} if value is None else {field: text}


def shown(value: Any) -> str:
    """A setting for people, in one line."""
    return ", ".join(f"{name} {part}".strip() for name, part in flat("", value).items()) or "none"


def step_of(field: str) -> str:
    return field.partition(".")[0]


def origin(manifest: Manifest) -> str | None:
    """Where a model was taken from, if its manifest says so: hf://org/repo@revision."""
    source, revision = (manifest.inputs.settings.get(key) for key in ("source", "revision"))
    return f"{source}@{revision}" if isinstance(source, str) and isinstance(revision, str) else None


def is_stacked(chain: Chain) -> bool:
    """Whether a model was pruned that had been pruned before, as far as the registry knows."""
    return sum(manifest.inputs.op == "prune" for _, manifest in chain) > 1


def _of_step(chain: Chain, number: int) -> dict[str, Setting]:
    manifest = chain[number][1]
    inputs = manifest.inputs
    found = {key: Setting(value, value) for key, value in inputs.settings.items() if key not in _NOT_COMPARED}
    if "compression" in found and number + 1 < len(chain):
        before, after = chain[number + 1][1].shape.experts, manifest.shape.experts
        depth = str(inputs.settings["compression"])
        found["compression"] = Setting(depth, f"{depth} ({after} of {before} experts)", (before, after))
    if inputs.op == "train":
        found |= _trained(found)
    if inputs.mix is not None:
        found["mix"] = Setting(inputs.mix.rows, f"{inputs.mix.name} ({inputs.mix.rows[:12]})")
    if inputs.seed is not None:
        found["seed"] = Setting(inputs.seed, inputs.seed)
    found["code"] = Setting(inputs.code, inputs.code)
    for file, digest in calibrated_with(chain, number).items():
        found[f"{CALIBRATED}{file}"] = Setting(digest, digest[:12])
    return dict(sorted(found.items()))


def _trained(found: dict[str, Setting]) -> dict[str, Setting]:
    """Settings of a training that are told otherwise than they are written down; what they replace is taken out."""
    length = {key: found.pop(key).value for key in TOGETHER["length"] if key in found}
    experts, double = (found.pop(key).value if key in found else None for key in TOGETHER["experts"])
    held = f"{experts}, its scales not quantised" if (experts, double) == ("nf4", False) else experts
    told = {"length": Setting(length, shown(length))} if length else {}
    told |= {"experts": Setting(held, held)} if experts else {}
    if isinstance(reference := found.get("reference", Setting(None, None)).value, Mapping):
        rows = str(reference.get("rows"))
        told["reference"] = Setting(rows, f"{reference.get('name')} ({rows[:12]})")
    return told


def _steps_of(found: Mapping[str, Setting]) -> set[str]:
    return {step_of(field) for field in found}


def _shown(found: Mapping[str, Setting], field: str) -> Any:
    return found[field].value if field in found else None


def _whole(found: Mapping[str, Setting], step: str) -> dict[str, Any] | None:
    """A step's settings, if it is there at all."""
    own = {field.partition(".")[2]: setting.value for field, setting in found.items() if step_of(field) == step}
    return {key: value for key, value in own.items() if value is not None and key != "code"} if own else None
