"""Plain values as JSON, apart by exact type, so that they can cross from code that nobody trusts.

    None, True, "text", whole numbers below 2**53, [lists]    as JSON has them
    {"int": "0x…"}  {"float": "1.5"}  {"complex": ["0.0", "1.0"]}  {"bytes": "hex"}  {"text": "hex"}
    {"tuple": […]}  {"set": […]}  {"dict": [[key, value], …]}
    {"large": "sha256"}                                       of a large result, its digest
    {"strange": "fractions.Fraction"}                         anything else, known by name only

Nothing of the other side is executed on either way: `encode` reads containers by their base class's own methods, and
`decode` builds these types and nothing else. This module runs inside the verifier's child too, where only Python's own
library exists; `run_javascript.js` holds its twin in JavaScript.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

DEEPEST = 48
"""Levels of JSON that one value may take: lists take one each, tuples and sets two, dicts three. Records end at 64."""
LARGEST = 1 << 22
"""Characters of JSON, about, that one value may take."""
LARGEST_RESULT = 1 << 14
"""Characters that a result may take before its digest stands for it: results are kept with the evidence."""
_LARGEST_DIGESTED = 1 << 26

_EXACT = 1 << 53
_MOST_ALIKE = 64
"""Keys or members of one dict or set that may have the same hash. Numbers can be chosen so that all do, and then a
megabyte of them keeps whoever reads it busy for hours."""
_NAME = 120


class Strange:
    """What came back and is no plain value: its type's name, or why it could not be brought out. Equals nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Strange({self.name!r})"


class Large:
    """A result too large to be kept. It equals what has the same digest: what is equal to it in Python (1, 1.0 and True
    are one here, lists and tuples two), NaN being equal to NaN."""

    __slots__ = ("digest",)

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Large) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Large({self.digest!r})"


def encode(value: Any) -> Any:
    """`value` as JSON; never fails. Of dicts, the forms in `collections` count as dicts, since they equal them."""
    try:
        return _encode(value, 0, [LARGEST])
    except _TooLargeError:
        return {"strange": f"a value larger than {LARGEST >> 20} MiB"}
    except _TooDeepError as error:
        return {"strange": str(error)}


def encode_result(value: Any) -> Any:
    """As `encode`; of a large value, its digest."""
    try:
        return _encode(value, 0, [LARGEST_RESULT])
    except _TooLargeError:
        return _large(value)
    except _TooDeepError as error:
        return {"strange": str(error)}


def decode(encoded: Any) -> Any:
    """The value that `encoded` stands for.

    Raises:
        ValueError: it is not what `encode` or `encode_result` gives, for any value.
    """
    return _decode(encoded, 0)


def same(one: Any, other: Any, *, tolerance: float = 0.0) -> bool:
    """Whether two plain values are equal, and of the same types throughout: 1, 1.0 and True are three things.

    NaN equals NaN. The order of a dict or set means nothing. Of a `Large` value only the digest is left to compare.

    Args:
        tolerance: how far two floats may be apart, absolutely; keys and the members of sets must be exact.
    """
    if isinstance(one, Large) or isinstance(other, Large):
        return _digest_of(one) == _digest_of(other) is not None
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or abs(one - other) <= tolerance or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        parts = ((one.real, other.real), (one.imag, other.imag))
        return all(same(mine, theirs, tolerance=tolerance) for mine, theirs in parts)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(
            same(mine, theirs, tolerance=tolerance) for mine, theirs in zip(one, other, strict=True)
        )
    if isinstance(one, set):
        return len(one) == len(other) and set(map(_key, one)) == set(map(_key, other))
    if isinstance(one, dict):
        mine, theirs = ({_key(key): value for key, value in each.items()} for each in (one, other))
        return mine.keys() == theirs.keys() and all(
            same(value, theirs[key], tolerance=tolerance) for key, value in mine.items()
        )
    return bool(one == other)


def dumps(encoded: Any) -> str:
    """Encoded values as canonical JSON in one line: they hold no float, no large number and no half letter."""
    return _ENCODER.encode(encoded)


def loads(text: str) -> Any:
    """The JSON in `text`, read as strictly as our own is written.

    Raises:
        ValueError: something that `dumps` never writes: a float, a long number, a key given twice, absurd nesting.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _TooLargeError(Exception):
    pass


class _TooDeepError(Exception):
    pass


def _encode(value: Any, depth: int, left: list[int]) -> Any:
    kind = type(value)
    _spend(4, left)
    if depth > DEEPEST:
        raise _TooDeepError(f"a value nested beyond {DEEPEST} levels")
    if value is None or kind is bool:
        return value
    if kind is int:
        if -_EXACT < value < _EXACT:
            return value
        _spend(value.bit_length() // 4, left)
        return {"int": hex(value)}
    if kind is float:
        return {"float": repr(value)}
    if kind is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if kind is str:
        return _text(value, left)
    if kind is bytes:
        _spend(2 * len(value), left)
        return {"bytes": value.hex()}
    if kind is list:
        return [_encode(each, depth + 1, left) for each in value]
    if kind is tuple:
        return {"tuple": [_encode(each, depth + 2, left) for each in value]}
    if kind is set:
        return {"set": sorted((_encode(each, depth + 2, left) for each in value), key=dumps)}
    if kind in _DICTS:
        items = list(dict.items(value))
        return {"dict": [[_encode(key, depth + 3, left), _encode(each, depth + 3, left)] for key, each in items]}
    return {"strange": _type_name(kind)}


_DICTS = (dict, Counter, OrderedDict, defaultdict)


def _text(value: str, left: list[int]) -> Any:
    _spend(len(value), left)
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no UTF-8 can hold
        return {"text": value.encode("utf-8", "surrogatepass").hex()}
    return value


def _spend(characters: int, left: list[int]) -> None:
    left[0] -= characters
    if left[0] < 0:
        raise _TooLargeError


def _large(value: Any) -> Any:
    """The digest of `value`, encoded; or of what kind it is that it has none."""
    hashed = hashlib.sha256()
    try:
        _feed(hashed.update, value, 0, [_LARGEST_DIGESTED])
    except _TooLargeError:
        return {"strange": f"a value larger than {_LARGEST_DIGESTED >> 20} MiB"}
    except _TooDeepError as error:
        return {"strange": str(error)}
    return {"large": hashed.hexdigest()}


def _digest_of(value: Any) -> str | None:
    return value.digest if isinstance(value, Large) else _large(value).get("large")


def _feed(update: Callable[[bytes], None], value: Any, depth: int, left: list[int]) -> None:
    """Feeds a hash with `value`, so that values that are equal in Python feed it alike."""
    kind = type(value)
    _spend(128, left)
    if depth > DEEPEST:
        raise _TooDeepError(f"a value nested beyond {DEEPEST} levels")
    if kind in (bool, int, float):
        update(f"#{_number(value)};".encode())
    elif kind is str or kind is bytes:
        _spend(len(value), left)
        data = value if kind is bytes else value.encode("utf-8", "surrogatepass")
        update(f"{kind.__name__}{len(data)}:".encode() + data)
    elif value is None or kind is complex:
        update(f"{value!r};".encode())
    elif kind is list or kind is tuple:
        update(f"{kind.__name__}{len(value)}:".encode())
        doubles = _doubles(value)
        if doubles is not None:
            _spend(len(doubles), left)
            update(b"doubles" + doubles)
            return
        for each in value:
            _feed(update, each, depth + 1, left)
    elif kind is set or kind in _DICTS:
        parts = list(value) if kind is set else list(dict.items(value))
        digests = []
        for part in parts:
            hashed = hashlib.sha256()
            _feed(hashed.update, part, depth + 1, left)
            digests.append(hashed.digest())
        update(f"{'set' if kind is set else 'dict'}{len(parts)}:".encode() + b"".join(sorted(digests)))
    else:
        raise _TooDeepError(_type_name(kind))


def _number(value: float) -> str:
    if isinstance(value, float) and not value.is_integer():
        return repr(abs(value)) if value != value else repr(value)  # NaN may carry a sign
    return hex(int(value))


def _doubles(numbers: list[Any] | tuple[Any, ...]) -> bytes | None:
    """Numbers as eight bytes each, where that loses nothing: millions of them are hashed in no time."""
    if not set(map(type, numbers)) <= {bool, int, float} or not numbers or not max(map(abs, numbers)) < _EXACT:
        return None
    doubles = [number + 0.0 for number in numbers]  # which also makes 0.0 of -0.0
    return None if math.isnan(math.fsum(doubles)) else array("d", doubles).tobytes()


def _type_name(kind: type) -> str:
    # past whatever its own type says
    module, name = (type.__dict__[each].__get__(kind) for each in ("__module__", "__qualname__"))
    full = f"{module}.{name}" if type(module) is str and module != "builtins" else str(name)
    return "".join(letter if letter.isprintable() else "?" for letter in full)[:_NAME]


def _decode(encoded: Any, depth: int) -> Any:
    if depth > DEEPEST + 2:
        raise ValueError("nested too deeply")
    if encoded is None or isinstance(encoded, bool):
        return encoded
    if isinstance(encoded, int):
        if abs(encoded) >= _EXACT:
            raise ValueError("a large number that is not written as one")
        return encoded
    if isinstance(encoded, str):
        return encoded
    if isinstance(encoded, list):
        return [_decode(each, depth + 1) for each in encoded]
    if not isinstance(encoded, dict) or len(encoded) != 1:
        raise ValueError("not an encoded value")
    ((tag, content),) = encoded.items()
    if tag in ("tuple", "set", "dict", "complex"):
        if not isinstance(content, list):
            raise ValueError(f"not an encoded {tag}")
        return _container(tag, content, depth)
    return _scalar(tag, content)


def _container(tag: str, content: list[Any], depth: int) -> Any:
    if tag == "complex":
        if len(content) != 2 or not all(isinstance(part, str) for part in content):
            raise ValueError("not an encoded complex number")
        return complex(*map(_float, content))
    if tag == "tuple":
        return tuple(_decode(each, depth + 2) for each in content)
    if tag == "set":
        members = _told_apart([_decode(each, depth + 2) for each in content])
        return _distinct(set(members), members)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in content):
        raise ValueError("not an encoded dict")
    keys = _told_apart([_decode(key, depth + 3) for key, _ in content])
    return _distinct(dict(zip(keys, (_decode(value, depth + 3) for _, value in content), strict=True)), keys)


def _scalar(tag: str, content: Any) -> Any:
    if not isinstance(content, str):
        raise ValueError(f"not an encoded {tag}")  # noqa: TRY004 - as every other flaw
    if tag == "int":
        return int(content, 16)
    if tag == "float":
        return _float(content)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "text":
        return bytes.fromhex(content).decode("utf-8", "surrogatepass")
    if tag == "large" and len(content) == 64 and set(content) <= set("0123456789abcdef"):
        return Large(content)
    if tag == "strange" and len(content) <= _NAME and content.isprintable():
        return Strange(content)
    raise ValueError("not an encoded value")


def _float(text: str) -> float:
    if len(text) > 32:
        raise ValueError("not an encoded float")
    return float(text)


def _told_apart(keys: list[Any]) -> list[Any]:
    """`keys`, of which a dict or set can be built, and in a time that grows with their number alone."""
    try:
        hashes = list(map(hash, keys))
    except TypeError:
        raise ValueError("a key or member that no dict or set can hold") from None
    if len(hashes) > _MOST_ALIKE and max(Counter(hashes).values()) > _MOST_ALIKE:
        raise ValueError("keys or members that were made to have one hash")
    return keys


def _distinct(made: Any, given: list[Any]) -> Any:
    if len(made) != len(given):
        raise ValueError("a key or member given twice")
    return made


def _key(value: Any) -> Any:
    """Something hashable that is equal exactly for the same values, as far as hashable plain values go."""
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    if isinstance(value, float | complex) and value != value:  # only NaN is not itself
        return type(value), "nan"
    return type(value), value


def has_strange(encoded: Any) -> bool:
    if isinstance(encoded, list):
        return any(map(has_strange, encoded))
    return isinstance(encoded, dict) and ("strange" in encoded or any(map(has_strange, encoded.values())))


def _whole(text: str) -> int:
    if len(text) > 17:
        raise ValueError("a large number that is not written as one")
    return int(text)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:32]} is not written so")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return _distinct(dict(pairs), pairs)


_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_refuse, parse_constant=_refuse, object_pairs_hook=_once)
