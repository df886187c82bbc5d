"""YAML as people write it, read strictly: the same text always means one thing, and an error names its line.

Numbers with a point become `Decimal`, so that 0.289 stays 0.289; `on`, `no` and `yes` are words; a key given twice is
refused, and so is a number that no record could hold; nothing builds objects. `parse` and `parse_list` then hold the
data against a pydantic model and report what is wrong at once, each complaint with its line and its field.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from gates.errors import UsageError


class Strict(BaseModel):
    """A part of a file that a person writes: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)
Shape = TypeVar("Shape")


def parse(text: str, model: type[Model], *, where: str) -> Model:
    """Reads `text` as a `model`.

    Args:
        where: the file's name, for messages.

    Raises:
        UsageError: not YAML, or not of the model's shape; the complaints, a line each.
    """
    node, data = _read(text, where)
    if not isinstance(data, dict):
        raise UsageError("the file must hold keys and values", where=where, remedy=_accepted(model))
    return _held(TypeAdapter(model), data, node, where=where, remedy=_accepted(model))


def parse_list(text: str, model: type[Model], *, where: str) -> list[Model]:
    """Reads `text` as a list of `model`s. Arguments and errors as with `parse`."""
    node, data = _read(text, where)
    if not isinstance(data, list):
        raise UsageError("the file must hold a list", where=where, remedy=_accepted(model))
    return _held(TypeAdapter(list[model]), data, node, where=where, remedy=_accepted(model))  # type: ignore[valid-type]


def _read(text: str, where: str) -> tuple[yaml.Node | None, Any]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        return node, None if node is None else _Loader("").construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"not readable as YAML: {' '.join(str(error).split())}", where=where) from None


def _held(adapter: TypeAdapter[Shape], data: Any, node: Any, *, where: str, remedy: str) -> Shape:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        complaints = [_complaint(item, node) for item in error.errors()[:_COMPLAINTS]]
        if error.error_count() > _COMPLAINTS:
            complaints.append(f"and {error.error_count() - _COMPLAINTS} more")
        raise UsageError("\n".join(complaints), where=where, remedy=remedy) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader with the booleans of YAML 1.2, exact decimals, and no key given twice.

    Tags build the values of JSON and nothing else: dates and bytes are words, or refused where a tag asks for them.
    """


_IMPLICIT = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:null"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _IMPLICIT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))

_COMPLAINTS = 12
"""More at once help nobody; a file that has more is likely another file than was meant."""
_LARGEST = 2**53
"""Whole numbers from here on have no exact form in JSON."""
_DIGITS = 32
"""More of them before or after the point no decimal has that a person writes."""


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _refused(node, "a text holds a letter that no file can be named or written with")
    return str(text)


def _bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node)
    if text not in ("true", "false"):
        raise _refused(node, f"{text} is neither true nor false")
    return text == "true"


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if not re.fullmatch(r"[-+]?[0-9]{1,16}", text) or abs(int(text)) >= _LARGEST:
        raise _refused(node, f"{_cut(text)} is no whole number below 2**53")
    return int(text)


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal:
    text = loader.construct_scalar(node)
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise _refused(node, f"{_cut(text)} is not a number")
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_DIGITS or number.adjusted() >= _DIGITS:
        raise _refused(node, f"{_cut(text)} is beyond {_DIGITS} digits before or after the point")
    return number


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _refused(node, "these are not keys and values")
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        # looked at before it is built: a key of aliases to aliases would have no end
        key = loader.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            shown = f"the key {_cut(key_node.value)!r}" if isinstance(key_node, yaml.ScalarNode) else "a key"
            raise _refused(key_node, f"{shown} is not text")
        if key in mapping:
            raise _refused(key_node, f"the key {key!r} is given twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _refused(node: yaml.Node, what: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag in (None, f"{_TAG}null", f"{_TAG}seq")
}
_Loader.add_constructor(f"{_TAG}str", _text)
_Loader.add_constructor(f"{_TAG}bool", _bool)
_Loader.add_constructor(f"{_TAG}int", _whole)
_Loader.add_constructor(f"{_TAG}float", _decimal)
_Loader.add_constructor(f"{_TAG}map", _unique_mapping)


def _complaint(error: Any, root: yaml.Node) -> str:
    """One validation error as 'line 7, steps[0].prune.compression: …'."""
    path = list(error["loc"])
    message = "unknown key" if error["type"] == "extra_forbidden" else str(error["msg"]).removeprefix("Value error, ")
    return f"line {_line(root, path)}, {_field(path)}: {message}"


def _line(root: yaml.Node, path: list[str | int]) -> int:
    """The line of the deepest node on `path` that the text has (a missing key is reported where it should stand)."""
    node, line = root, root.start_mark.line
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = [(node.value[part], node.value[part])]
        else:
            found = []
        if not found:
            break
        line, node = found[0][0].start_mark.line, found[0][1]
    return line + 1


def _field(path: list[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the file"


def _accepted(model: type[BaseModel]) -> str:
    return "the keys here are " + ", ".join(model.model_fields)
