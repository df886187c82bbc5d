"""Public sets for packs, from the Hub or from files that somebody has, into the registry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace as changed
from pathlib import Path

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry import fs, packs, published
from registry.manifests import File
from registry.packs import Found, Kept, Published
from registry.progress import progress
from registry.published import reading
from registry.published.reading import Json
from registry.remotes import hub
from registry.store import Store


def fetch(
    store: Store, project: Path, name: str, *, source: Path | None = None, replace: bool = False
) -> tuple[Kept, bool]:
    """Keeps the rows of the pack's public set. One that is kept already stays, and the Hub is not asked.

    Args:
        source: a file or a folder as published; None: the Hub, at the commit that the pack's revision names now.
        replace: keep what is read now, though other rows are kept already.

    Returns:
        what is kept, and whether it was not before.

    Raises:
        UsageError: the pack asks no public set; there are no such rows; other rows are kept already; the Hub refuses.
        IntegrityError: what is kept is damaged (and `replace` is not set), or a file is not what the Hub says.
    """
    dataset = packs.read_file(project, name).dataset
    if dataset is None:
        raise UsageError(
            f"the pack {name} asks items of the project's own", where=str(project / "packs" / f"{name}.yaml"),
            remedy="there is nothing to fetch",
        )  # fmt: skip
    before = None if replace else packs.kept(store, dataset)
    if before is not None and source is None:
        packs.items(store, name, dataset, where=name)  # which says if they are damaged
        return before, False
    found = _from_hub(store, dataset) if source is None else _from_files(dataset, source)
    return packs.keep(store, name, dataset, found, replace=replace)


def _from_files(dataset: Published, source: Path) -> Found:
    if source.is_dir():
        every = (Path(base, name) for base, _, names in fs.walk(source) for name in names)
        paths = {path.relative_to(source).as_posix(): path for path in every if path.name.endswith(reading.KINDS)}
        wanted = published.chosen(dataset.format, paths, dataset.config, dataset.split, where=str(source))
        paths = {name: paths[name] for name in wanted}
    elif source.name.endswith(reading.KINDS):
        paths = {source.name: source}
    else:
        kinds = ", ".join(reading.KINDS)
        what = "no file of rows is called so" if source.exists() else "there is no such file or folder"
        raise UsageError(what, where=str(source), remedy=f"name the set's folder as published, or a file: {kinds}")
    return _found(dataset, ((name, str(path), _read(path)) for name, path in paths.items()), None, where=str(source))


def _read(path: Path) -> bytes:
    try:
        return fs.contents(path)
    except OSError as error:
        raise UsageError(f"this cannot be read: {error.strerror}", where=str(path)) from None


def _from_hub(store: Store, dataset: Published) -> Found:
    """The files at one commit; those that an attempt which ended has fetched are not fetched again."""
    address = hub.Address(f"datasets/{dataset.hub}", dataset.revision)
    with hub.asked(address):
        from huggingface_hub import HfApi, hf_hub_download

        info = HfApi().dataset_info(dataset.hub, revision=dataset.revision, files_metadata=True)
        commit = str(info.sha)
        there = {each.rfilename: each for each in info.siblings or [] if each.rfilename.endswith(reading.KINDS)}
        wanted = published.chosen(dataset.format, there, dataset.config, dataset.split, where=str(address))
        work = canonical.digest(canonical.dumps({"fetch": dataset.hub, "commit": commit}))
        read: list[tuple[str, str, bytes]] = []
        with store.step(work) as folder, progress(f"fetch {dataset.hub}", total=len(wanted), unit="files") as bar:
            for name in wanted:
                path = hf_hub_download(dataset.hub, name, repo_type="dataset", revision=commit, local_dir=folder)
                data, stated = _read(Path(path)), there[name].lfs
                if stated is not None and canonical.digest(data) != stated.sha256:
                    fs.remove_tree(Path(path))
                    raise IntegrityError(
                        "the file is not what the Hub says", where=f"{address}, {name}", remedy="run this again"
                    )
                read.append((name, f"{address}, {name}", data))
                bar.advance(1)
        found = _found(dataset, read, commit, where=str(changed(address, revision=commit)))
        store.discard(work)
    return found


def _found(dataset: Published, files: Iterable[tuple[str, str, bytes]], commit: str | None, *, where: str) -> Found:
    """
    Args:
        files: of each its name, where it lies, and its bytes.
    """
    rows: dict[str, list[Json]] = {}
    known: dict[str, File] = {}
    for name, place, data in files:
        rows[name] = reading.rows_in(name, data, where=place)
        known[name] = File(digest=canonical.digest(data), size=len(data))
    return Found(commit, known, published.joined(dataset.format, rows, where=where))
