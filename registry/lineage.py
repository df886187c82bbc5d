"""What a candidate was made from, and what was made from it, as the store has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gates.errors import IntegrityError, SluiceError
from registry import generations, history, output
from registry.manifests import Manifest
from registry.objects import Candidate, Objects


@dataclass(frozen=True, slots=True)
class Node:
    """A manifest, under the names that it has now (none is possible), and what was made from it.

    `op` and `about` are None where the manifest is missing or damaged: then what it was made from is unknown.
    """

    digest: str
    names: tuple[str, ...]
    channels: tuple[str, ...]
    op: str | None
    about: str | None
    made: tuple[Node, ...]


def ancestry(store: Objects, digest: str, known: dict[str, Manifest] | None = None) -> Iterator[tuple[str, Manifest]]:
    """The manifest called `digest` and those it was made from, newest first.

    Args:
        known: manifests that were read already, by digest; what is read is added.

    Raises:
        IntegrityError: one of them is missing or damaged.
    """
    next_digest: str | None = digest
    while next_digest is not None:
        manifest = known.get(next_digest) if known is not None else None
        if manifest is None:
            manifest = store.manifest(next_digest)
            if known is not None:
                known[next_digest] = manifest
        yield next_digest, manifest
        next_digest = manifest.inputs.parent


def chain(store: Objects, candidate: Candidate, known: dict[str, Manifest] | None = None) -> history.Chain:
    """All of `ancestry`."""
    return tuple(ancestry(store, candidate.digest, {candidate.digest: candidate.manifest} if known is None else known))


def trees(store: Objects, name: str | None = None) -> list[Node]:
    """Everything in the registry from its origins on; with `name`, its line of descent and what was made from it.

    An ancestor is there whether it still has a name or not. A candidate that is damaged is left out, with a hint.

    Raises:
        UsageError: nothing is called `name`.
        IntegrityError: its manifest is missing or damaged.
    """
    wanted = store.candidate(name) if name is not None else None
    found = _Known({}, {}, {})
    for each in store.names():
        try:
            candidate = store.candidate(each)
        except SluiceError as error:
            output.hint(f"{each} is left out, for it is damaged: {error.what}")
            continue
        found.names.setdefault(candidate.digest, []).append(each)
        _follow(store, candidate.digest, found)
    line = None
    if wanted is not None:
        line = {wanted.digest, *_above(wanted.digest, found.parents)}
    served = generations.shown(store.layout)
    roots = [digest for digest, parent in found.parents.items() if parent is None]
    return [
        _node(root, found, served, line, wanted.digest if wanted else None)
        for root in sorted(roots, key=lambda root: found.names.get(root, [root]))
        if line is None or root in line
    ]


def render(roots: list[Node]) -> str:
    """The trees as text, a line for each manifest."""
    lines: list[str] = []
    for root in roots:
        lines.append(_line(root))
        _draw(root.made, "", lines)
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Known:
    names: dict[str, list[str]]
    manifests: dict[str, Manifest]
    parents: dict[str, str | None]


def _follow(store: Objects, digest: str, found: _Known) -> None:
    """Adds a manifest and those above it, as far as they can be read and are not there yet."""
    next_digest: str | None = digest
    while next_digest is not None and next_digest not in found.parents:
        try:
            manifest = store.manifest(next_digest)
        except IntegrityError as error:
            output.hint(f"what {next_digest[:12]} was made from is unknown: {error.what}")
            found.parents[next_digest] = None
            return
        found.manifests[next_digest] = manifest
        found.parents[next_digest] = manifest.inputs.parent
        next_digest = manifest.inputs.parent


def _above(digest: str, parents: dict[str, str | None]) -> Iterator[str]:
    above = parents.get(digest)
    while above is not None:
        yield above
        above = parents.get(above)


def _node(digest: str, found: _Known, served: dict[str, str], line: set[str] | None, wanted: str | None) -> Node:
    """A node and what lies below it: on the way to `wanted` that way alone, from there on everything."""
    manifest = found.manifests.get(digest)
    names = tuple(found.names.get(digest, ()))
    below = [each for each, parent in found.parents.items() if parent == digest]
    if line is not None and digest != wanted:
        below = [each for each in below if each in line]
    below.sort(key=lambda each: (found.names.get(each, ["~"]), each))
    return Node(
        digest=digest,
        names=names,
        channels=tuple(channel for channel, name in served.items() if name in names),
        op=manifest.inputs.op if manifest else None,
        about=_about(manifest, found) if manifest else None,
        made=tuple(_node(each, found, served, None if digest == wanted else line, wanted) for each in below),
    )


def _about(manifest: Manifest, found: _Known) -> str:
    inputs = manifest.inputs
    if inputs.op == "add":
        return history.origin(manifest) or "from a folder"
    if inputs.op == "derive":
        return ", ".join(f"{file} {digest[:12]}" for file, digest in inputs.settings["replaced"].items())
    if inputs.op == "train":
        mix = f", mix {inputs.mix.name} {inputs.mix.rows[:12]}" if inputs.mix else ""
        return f"experts in {inputs.settings.get('experts')}{mix}"
    if inputs.op != "prune":
        return str(inputs.settings.get("format", ""))
    parts = [str(inputs.settings.get("compression")), str(inputs.settings.get("criterion"))]
    parts += [f"mix {inputs.mix.name} {inputs.mix.rows[:12]}"] if inputs.mix else []
    parts += [f"{manifest.shape.experts} experts"]
    above = [found.manifests[each] for each in _above(manifest.identity(), found.parents) if each in found.manifests]
    parts += ["stacked"] if any(each.inputs.op == "prune" for each in above) else []
    return ", ".join(parts)


def _draw(nodes: tuple[Node, ...], lead: str, lines: list[str]) -> None:
    for number, node in enumerate(nodes, 1):
        last = number == len(nodes)
        lines.append(f"{lead}{'└── ' if last else '├── '}{_line(node)}")
        _draw(node.made, lead + ("    " if last else "│   "), lines)


def _line(node: Node) -> str:
    names = ", ".join(node.names) or "(no name)"
    done = f"{node.op}: {node.about}" if node.op else "its manifest is missing or damaged"
    served = "".join(f"  ← {channel}" for channel in node.channels)
    return f"{names}  {node.digest[:12]}  {done}{served}"
