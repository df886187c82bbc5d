"""Another chat template, tokenizer or generation setting for the same weights: a candidate of its own.

What is served is what was judged, so a template is never swapped under a candidate: the one with the other template has
its own identity and needs its own evidence. The blobs of all other files are shared; no byte is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry import commits
from registry.contents import forbidden
from registry.layout import checked_name
from registry.manifests import File, Inputs
from registry.verify import demand_whole

if TYPE_CHECKING:
    from registry.store import Candidate, Store

CODE = "derive-1"

REPLACEABLE = (
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""What lies beside the weights and decides how a model is spoken to. Weights and config.json come from steps alone."""

_LARGEST = 256 << 20
"""Bytes. The largest tokenizers have about 20 MB."""


def derive(store: Store, source: str, name: str, files: Mapping[str, Path], *, replace: bool = False) -> Candidate:
    """The candidate `name`: `source` with some of its files replaced, or one added that it did not have.

    Args:
        source: a candidate's name, or a channel's.
        files: for each file of the model, where its new content is.
        replace: whether a candidate `name` that was made from something else gives way.

    Raises:
        UsageError: nothing is replaced, a file may not be or cannot be read, or the name is taken.
        IntegrityError: the source is damaged, or a new file is not what its name says.
    """
    checked_name(name)
    parent = store.candidate(source)
    if not files:
        raise UsageError("nothing is to be replaced", remedy="--replace chat_template.jinja=PATH")
    contents = {file: _content(file, path) for file, path in sorted(files.items())}
    for file, data in contents.items():
        there = parent.manifest.files.get(file)
        if there is not None and there.digest == canonical.digest(data):
            raise UsageError(
                f"{parent.name} has exactly this {file} already", where=str(files[file]), remedy="leave it out"
            )
    inputs = Inputs(
        op="derive",
        parent=parent.digest,
        settings={"replaced": {file: canonical.digest(data) for file, data in contents.items()}},
        code=CODE,
    )
    found = store.made(name, inputs, replace=replace)
    if found is not None:
        return found
    harm, remedy = ", and so would be what is made of it", "add or make it again, which mends it"
    demand_whole(store, parent, full=False, harm=harm, remedy=remedy)
    changed = {file: File(digest=store.put(data), size=len(data)) for file, data in contents.items()}
    return commits.assemble(store, name, inputs, {**parent.manifest.files, **changed}, replace=replace)


def parsed(words: Sequence[str]) -> dict[str, Path]:
    """FILE=PATH, as the command line has it, by file.

    Raises:
        UsageError: one is not of this form, or a file is named twice.
    """
    found: dict[str, Path] = {}
    for word in words:
        file, sign, path = word.partition("=")
        if not (file and sign and path) or file in found:
            what = f"{file} is named twice" if file in found else f"{word!r} is not FILE=PATH"
            raise UsageError(what, where="--replace", remedy="such as --replace chat_template.jinja=v19.jinja")
        found[file] = Path(path)
    return found


def _content(file: str, path: Path) -> bytes:
    """The new content of `file`, if it may be replaced by that."""
    if file not in REPLACEABLE:
        weights = file == "config.json" or ".safetensors" in file
        why = "decides what the weights mean, and only a step changes it" if weights else "is no file that is replaced"
        raise UsageError(f"{file} {why}", remedy=f"what can be replaced: {', '.join(REPLACEABLE)}")
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"more than {_LARGEST >> 20} MiB are no {file}", where=str(path))
        kind = forbidden(path) if path.is_file() else "no regular file"
        data = b"" if kind else path.read_bytes()
    except OSError as error:
        raise UsageError(f"the new {file} cannot be read: {error.strerror}", where=str(path)) from None
    if kind:
        raise IntegrityError(f"this is {kind}", where=str(path))
    if file.endswith(".json") and not isinstance(canonical.loads(data, where=str(path)), dict):
        raise IntegrityError(f"a {file} holds a JSON object, and this one does not", where=str(path))
    if file.endswith((".jinja", ".txt")):
        _text(data, path)
    return data


def _text(data: bytes, path: Path) -> None:
    try:
        empty = not data.decode().strip()
    except UnicodeDecodeError:
        raise IntegrityError("this is not UTF-8 text", where=str(path)) from None
    if empty:
        raise UsageError("the file is empty", where=str(path))
