"""YAML as people write it, read strictly: the same text always means one thing, and an error names its line.

Numbers with a point become `Decimal`, so that 0.289 stays 0.289; `on`, `no` and `yes` are words; a key given twice is
refused, and so is a number that no record could hold; nothing builds objects. `parse` and `parse_list` then hold the
data against a pydantic model and report what is wrong at once, each complaint with its line and its field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from gates.errors import UsageError
from gates.records import NAME


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
        raise UsageError("the file must hold keys and values", where=where, remedy=_keys(model, []))
    return _held(TypeAdapter(model), model, data, node, where=where)


def parse_list(text: str, model: type[Model], *, where: str) -> list[Model]:
    """Reads `text` as a list of `model`s. Arguments and errors as with `parse`."""
    node, data = _read(text, where)
    if not isinstance(data, list):
        raise UsageError("the file must hold a list", where=where, remedy=_keys(model, [0]))
    return _held(TypeAdapter(list[model]), model, data, node, where=where)  # type: ignore[valid-type]


def _read(text: str, where: str) -> tuple[yaml.Node | None, Any]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        return node, None if node is None else _Loader("").construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        written = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        remedy = _WRITING if written else _NAMED
        raise UsageError(f"not readable as YAML: {_misread(error, text)}", where=where, remedy=remedy) from None


def _misread(error: Exception, text: str) -> str:
    """What the parser stumbled over, and in which line."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: a character that no text has (U+{error.character:04X})"
    if not isinstance(error, yaml.MarkedYAMLError):
        return "lists or keys too deep in one another"
    said, mark, begun = error.problem or "", error.problem_mark, error.context_mark
    if "'\\t'" in said:
        said = "a tab, where only spaces indent"
    if error.context is not None:
        said += f" ({error.context}" + (f" from line {begun.line + 1}" if begun is not None else "") + ")"
    return said if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {said}"


def _held(adapter: TypeAdapter[Shape], model: type[BaseModel], data: Any, node: Any, *, where: str) -> Shape:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        errors = error.errors()[:_COMPLAINTS]
        complaints = list(dict.fromkeys(_complaint(item, node) for item in errors))
        if error.error_count() > _COMPLAINTS:
            complaints.append(f"and {error.error_count() - _COMPLAINTS} more")
        keys = dict.fromkeys(_keys(model, list(item["loc"][:-1])) for item in errors if item["type"] in _OF_KEYS)
        remedy = "; ".join(keys) or _NAMED
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

_NAMED = "mend what is named"
_WRITING = "mend that line; spaces indent, and a text with ': ', ' #' or a bracket in it stands in quotes"
_OF_KEYS = ("extra_forbidden", "missing")
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
    message = _plainly(error)
    path = list(error["loc"])
    if error["type"] == "value_error" and (named := re.match(r"(\w+)((?:\[\d+\])*): ", message)):
        # the complaint of a whole part begins with what in it is meant
        path += [named[1], *map(int, re.findall(r"\d+", named[2]))]
        message = message[named.end() :]
    line, there = _found(root, path)
    if error["type"] not in _OF_KEYS:
        path = path[:there] or path  # what follows are pydantic's own words, such as which of several types it tried
    return f"line {line}, {_field(path)}: {message}"


def _plainly(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == NAME:
        message = "a name is at most 64 of a-z 0-9 . _ -, and begins with a letter or a digit"
    return {
        "extra_forbidden": "unknown key",
        "model_type": "keys and values are needed here: {key: value}",
        "list_type": "a list is needed here: [one, another]",
        "tuple_type": "a list is needed here: [one, another]",
        "string_type": "a text is needed here; a number that is one stands in quotes",
    }.get(error["type"], message)


def _found(root: yaml.Node, path: list[str | int]) -> tuple[int, int]:
    """The line of the deepest node on `path` that the text has, and how many parts of the path lead to it.

    A missing key is reported where it should stand.
    """
    node, line, depth = root, root.start_mark.line, 0
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = [(node.value[part], node.value[part])]
        else:
            found = []
        if not found:
            break
        line, node, depth = found[0][0].start_mark.line, found[0][1], depth + 1
    return line + 1, depth


def _field(path: list[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the file"


def _keys(model: type[BaseModel], path: list[str | int]) -> str:
    """Which keys the part of the file at `path` may have."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return f"the keys of {_field(path)} are {', '.join(model.model_fields)}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
