"""Edit config.json in place: the changed values change, and nothing else does, not even a space.

Writing it anew by a library would rename keys (transformers turns num_experts into num_local_experts, which its older
versions do not read) and reformat numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Path = tuple[str, ...]

_SPACE = re.compile(r"[ \t\n\r]*")


def edited(text: str, changes: Mapping[Path | str, Any]) -> str:
    """`text`, a JSON object, with the values of `changes` set; keys that an object lacks are added at its end.

    Args:
        changes: by path: ("text_config", "num_experts") is the key num_experts in the object text_config.
    """
    here: dict[str, Any] = {}
    below: dict[str, dict[Path | str, Any]] = {}
    for path, value in changes.items():
        first, *rest = (path,) if isinstance(path, str) else path
        if rest:
            below.setdefault(first, {})[tuple(rest)] = value
        else:
            here[first] = value
    spans, lead = _spans(text)
    replaced = [(spans[key], _dump(value, lead)) for key, value in here.items() if key in spans]
    for key, inner in below.items():
        begin, end = spans[key]  # an object that config.json does not have is nobody's to edit
        replaced.append(((begin, end), edited(text[begin:end], inner)))
    added = "".join(f",{lead}{json.dumps(key)}: {_dump(here[key], lead)}" for key in here if key not in spans)
    if added:
        end = max((end for _, end in spans.values()), default=text.index("{") + 1)
        text = text[:end] + (added if spans else added[1:]) + text[end:]
    for (begin, end), value in sorted(replaced, reverse=True):
        text = text[:begin] + value + text[end:]
    return text


def _spans(text: str) -> tuple[dict[str, tuple[int, int]], str]:
    """Where the value of each top-level key lies, and the white space before a key."""
    decoder = json.JSONDecoder()
    position = _after_space(text, 0)
    spans, lead = {}, " "
    while text[position] != "}":
        start = _after_space(text, position + 1)
        if text[start] == "}":
            break
        if not spans:
            lead = text[position + 1 : start]
        key, end = decoder.raw_decode(text, start)
        begin = _after_space(text, _after_space(text, end) + 1)
        _, end = decoder.raw_decode(text, begin)
        spans[key] = (begin, end)
        position = _after_space(text, end)
    return spans, lead


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _dump(value: Any, lead: str) -> str:
    """`value` as the file around it is written: a line each, indented as its keys are, or all in one line."""
    _, newline, indent = lead.rpartition("\n")
    if not newline:
        return json.dumps(value)
    line_end = "\r\n" if "\r\n" in lead else "\n"
    return json.dumps(value, indent=indent).replace("\n", line_end + indent)
