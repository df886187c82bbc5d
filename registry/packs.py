"""Packs as the registry knows them: their YAML, and the public sets that are kept for them.

A public set is kept as it was published: its rows are a blob, a JSON object a line, and a record below datasets/ says
where they came from. Its items are read from the rows anew each time, so a better reading needs no fetching. Whoever
evaluates fetches nothing: a container needs no network, and what the Hub has under a branch tomorrow changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gates import canonical
from gates.errors import IntegrityError, SluiceError, UsageError
from gates.records import Digest, Name, Record
from gates.strict_yaml import Strict, parse
from registry import fs, published
from registry.manifests import File
from registry.published.reading import Json, rows_of
from registry.recipes import Whole, read_text
from registry.store import Store


class Published(Strict):
    """A public set: where the Hub has it, and in which form its rows are."""

    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    format: Literal["bfcl", "gsm8k", "humaneval-plus", "mmlu"]
    config: str | None = None
    split: str = "test"
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$")] = "main"
    """A branch or a tag is resolved when the set is fetched, and the commit is recorded."""

    @property
    def definition(self) -> str:
        """What the record of the kept rows is called after."""
        return canonical.digest(canonical.dumps(self.model_dump(mode="json")))

    def __str__(self) -> str:
        return f"hf://datasets/{self.hub}@{self.revision}"


class PackFile(Strict):
    """What `packs/<name>.yaml` may say."""

    name: Name
    description: str
    grader: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """A module of stages/common/grading."""
    items: Annotated[str, Field(pattern=r"\.(jsonl|yaml)$")] | None = None
    dataset: Published | None = None
    """Either of the two: a file of items, or a public set."""
    max_tokens: Annotated[Whole, Field(ge=1)]
    """Of one answer."""
    max_turns: Annotated[Whole, Field(ge=1)] = 1
    """The most answers that one item may take."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.items is None) == (self.dataset is None):
            raise ValueError("give items, a file of the project, or dataset, a public set")
        return self


class Kept(Record):
    """The rows of a public set that are kept. `rows` is the blob; `files` are what they were read from.

    `commit` is the Hub's; None says that the files were local ones.
    """

    format: Literal[1] = 1
    dataset: dict[str, str | None]
    commit: str | None
    files: dict[str, File]
    rows: Digest
    items: int = Field(ge=1)

    @property
    def source(self) -> str:
        return f"hf://datasets/{self.dataset['hub']}@{self.commit}" if self.commit else "local files"


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that were read, to be kept."""

    commit: str | None
    files: dict[str, File]
    rows: list[Json]


def read_file(project: Path, name: str) -> PackFile:
    """`packs/<name>.yaml` of the project.

    Raises:
        UsageError: there is no such pack, or a field is not as it must be.
    """
    path = project / "packs" / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(
            f"there is no pack {name}",
            where=str(path),
            remedy=f"the packs here are {', '.join(names(project)) or '(none)'}",
        )
    file = parse(read_text(path, "pack"), PackFile, where=str(path))
    if file.name != name:
        raise UsageError(
            f"the pack is called {file.name}, its file {path.name}", where=f"{path}, name", remedy="call both the same"
        )
    return file


def names(project: Path) -> list[str]:
    """The packs of the project."""
    return sorted(path.stem for path in (project / "packs").glob("*.yaml"))


def kept(store: Store, dataset: Published) -> Kept | None:
    """What is kept of a public set; None if it was not fetched.

    Raises:
        IntegrityError: the record is damaged.
    """
    definition = dataset.definition
    if f"{definition}.json" not in fs.entries(store.layout.datasets):
        return None
    path = store.layout.dataset(definition)
    record = Kept.from_bytes(fs.read(path, "record of a public set"), where=str(path))
    if record.dataset != dataset.model_dump(mode="json"):
        raise IntegrityError("this record lies where it does not belong", where=str(path), remedy=fs.RESTORE)
    return record


def demand(store: Store | None, name: str, dataset: Published, *, where: str) -> Kept:
    """What is kept of the pack's public set.

    Raises:
        UsageError: it was not fetched; with the command that does it.
        IntegrityError: as `kept`.
    """
    record = kept(store, dataset) if store is not None else None
    if record is None:
        raise UsageError(
            f"{name} asks items of a public set ({dataset.hub}), and that is not in this registry",
            where=where,
            remedy=f"registry pack fetch {name}, or, of a copy that you have: registry pack fetch {name} --from PATH",
        )
    return record


def items(store: Store, name: str, dataset: Published, *, where: str) -> list[Json]:
    """The items of a pack's public set, as its grader reads them.

    Raises: as `demand`; IntegrityError too if the rows are damaged.
    """
    record = demand(store, name, dataset, where=where)
    again = f"registry pack fetch {name} --replace"
    try:
        rows = rows_of(store.read(record.rows), where=str(store.layout.blob(record.rows)))
    except SluiceError as error:
        raise IntegrityError(f"the kept rows of {name}: {error.what}", where=error.where, remedy=again) from None
    return published.items(dataset.format, rows, where=f"the kept rows of {name}")


def keep(store: Store, name: str, dataset: Published, found: Found, *, replace: bool = False) -> tuple[Kept, bool]:
    """Keeps the rows of a pack's public set. Doing it again with the same rows changes nothing.

    Returns:
        what is kept, and whether it was not before.

    Raises:
        UsageError: the rows are not of the set's form; or other rows are kept already, and `replace` is not set.
    """
    made = published.items(dataset.format, found.rows, where=", ".join(found.files))
    data = published.written(found.rows)
    record = Kept(
        format=1,
        dataset=dataset.model_dump(mode="json"),
        commit=found.commit,
        files=found.files,
        rows=canonical.digest(data),
        items=len(made),
    )
    path = store.layout.dataset(dataset.definition)
    before = _before(store, dataset, replace=replace)
    if before is not None and before.rows == record.rows:
        store.put(data)  # which mends a blob that is damaged
        return before, False
    if before is not None and not replace:
        raise UsageError(
            f"other rows of this set are kept already: {before.items} items from {before.source}; "
            f"these are {record.items} from {record.source}",
            where=name,
            remedy="--replace keeps these instead; evidence that was taken on the others is not compared with theirs",
        )
    store.put(data)
    fs.make_folders(path.parent)
    fs.write_content(path, record.to_bytes())
    about = {"pack": name, "rows": record.rows, "commit": record.commit, "items": record.items}

    def following(newest: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if newest is not None and about.items() <= newest.items() else about

    store.log.follow("fetch", {"definition": dataset.definition}, following)
    return record, True


def _before(store: Store, dataset: Published, *, replace: bool) -> Kept | None:
    """What is kept already; where it is to be replaced, a damaged record is none."""
    try:
        return kept(store, dataset)
    except IntegrityError:
        if replace:
            return None
        raise
