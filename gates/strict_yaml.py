"""YAML as people write it, read strictly: the same text always means one thing, and an error names its line.

Numbers with a point become `Decimal`, so that 0.289 stays 0.289; `on`, `no` and `yes` are words; a key given twice is
refused; nothing builds objects. `parse` then holds the data against a pydantic model and reports every complaint at
once, each with its line and its field.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gates.errors import UsageError


class Strict(BaseModel):
    """A part of a file that a person writes: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)


def parse(text: str, model: type[Model], *, where: str) -> Model:
    """Reads `text` as a `model`.

    Args:
        where: the file's name, for messages.

    Raises:
        UsageError: not YAML, or not of the model's shape; all complaints, a line each.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = None if node is None else _Loader("").construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"not readable as YAML: {' '.join(str(error).split())}", where=where) from None
    if node is None or not isinstance(data, dict):
        raise UsageError("the file must hold keys and values", where=where, remedy=_accepted(model))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        complaints = [_complaint(item, node) for item in error.errors()]
        raise UsageError("\n".join(complaints), where=where, remedy=_accepted(model)) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader with the booleans of YAML 1.2, exact decimals, and no key given twice."""


_IMPLICIT = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:null"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _IMPLICIT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal:
    try:
        number = Decimal(loader.construct_scalar(node))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is not a number", node.start_mark)
    return number


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)
_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


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
