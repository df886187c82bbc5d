"""Models on the Hugging Face Hub: `hf://owner/name[@revision]`, fetched into a step's folder.

The revision (a branch, a tag, a commit, refs/pr/N; main if none is named) is resolved to its commit first, and all of
it comes from that commit. Of each shard the header is fetched and examined before any shard is. What the Hub says of a
file's SHA-256 is held against its bytes; a blob that is in the registry already is not fetched. The token is the one
that huggingface_hub finds (HF_TOKEN, `hf auth login`); it is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gates.errors import IntegrityError, UsageError
from registry import bulk, fs, output, taking
from registry.checkpoint import inspect
from registry.manifests import File
from registry.parallel import each_file
from registry.sources import KINDS, check_names
from registry.tensors import LARGEST_HEADER

SCHEME = "hf://"
DOWNLOADS = 4
"""Files fetched at once."""

_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_FIRST = 256 << 10
"""Bytes of a shard that are asked for first: most headers end there."""


@dataclass(frozen=True, slots=True)
class Address:
    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class Remote:
    """A model at one commit: the bytes of each of its files, and the SHA-256 of those that the Hub states one for.

    `there` is the same of every file of the repository, the model's or not.
    """

    address: Address
    commit: str
    sizes: dict[str, int]
    digests: dict[str, str]
    there: dict[str, tuple[int, str | None]]

    @property
    def origin(self) -> dict[str, str]:
        """What a candidate's settings say about where it came from."""
        return {"source": f"{SCHEME}{self.address.repository}", "revision": self.commit}

    def only(self, names: Iterable[str]) -> Remote:
        """The same commit, with exactly the files of these names as the model.

        Raises:
            IntegrityError: one is not there.
        """
        names = sorted(names)
        if missing := [name for name in names if name not in self.there]:
            where = f"{self.address}, {missing[0]}"
            raise IntegrityError("the model's records name a file that is missing", where=where)
        digests = {name: digest for name in names if (digest := self.there[name][1])}
        return replace(self, sizes={name: self.there[name][0] for name in names}, digests=digests)

    def known(self, files: Mapping[str, File]) -> dict[str, File]:
        """What is known of the model's files; of one whose digest the Hub does not state, it is taken from `files`."""
        unknown = {name: files[name].digest for name in self.sizes if name in files} | self.digests
        return {name: File(digest=unknown.get(name, "0" * 64), size=size) for name, size in self.sizes.items()}

    def can_be(self, files: Mapping[str, File]) -> bool:
        """Whether the model can consist of `files`, as far as is known before they are fetched."""
        return self.known(files) == files


def parse(source: str) -> Address | None:
    """The address that `source` is; None if it is none.

    Raises:
        UsageError: it begins like one.
    """
    if not source.startswith(SCHEME):
        return None
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise UsageError(
            f"{source} is no address on the Hub", remedy="write hf://owner/name or hf://owner/name@revision"
        )
    return Address(match["repository"], match["revision"])


def resolve(address: Address) -> Remote:
    """The commit that `address` names now, and the model's files in it; all others stay on the Hub.

    Raises:
        UsageError: there is no such repository or revision, it is gated, it holds no model, or the Hub does not answer.
    """
    with asked(address):
        from huggingface_hub import HfApi

        info = HfApi().model_info(address.repository, revision=address.revision, files_metadata=True)
    files = {each.rfilename: each for each in info.siblings or []}
    taken = {name: each for name, each in sorted(files.items()) if Path(name).suffix in KINDS and _visible(name)}
    check_names(taken, where=str(address))
    left = [name for name in files if name not in taken and _visible(name)]
    if left:
        output.hint(f"left on the Hub, for they are no part of a model: {', '.join(sorted(left))}")
    sizes = {name: each.size or 0 for name, each in taken.items()}
    digests = {name: each.lfs.sha256 for name, each in taken.items() if each.lfs}
    there = {name: (each.size or 0, each.lfs.sha256 if each.lfs else None) for name, each in files.items()}
    return Remote(address, str(info.sha), sizes, digests, there)


def fetch(remote: Remote, work: taking.Work, what: str) -> dict[str, File]:
    """Fetches the model into the work's folder; all files are durable there at the end.

    What was fetched by an attempt that ended is not fetched again.

    Raises:
        UsageError: as `resolve`; or the disk has no room (no shard is fetched then).
        IntegrityError: it is not a whole checkpoint (no shard is fetched then), or a file is not what the Hub says.
    """
    done, missing = _begun(remote, work)
    shards = {name: size for name, size in missing.items() if name.endswith(".safetensors")}
    _check_room(remote, work, missing)
    with asked(remote.address):
        small = {name: size for name, size in missing.items() if name not in shards}
        fetched = each_file(
            f"{what}: look",
            small,
            lambda name, advance: _fetched(remote, work, name, advance),
            workers=DOWNLOADS,
            small=0,
        )
        _examine(remote, work, shards)
        fetched |= each_file(
            what,
            shards,
            lambda name, advance: _fetched(remote, work, name, advance),
            workers=DOWNLOADS,
            small=0,
            finish=True,
        )
    files = done | fetched
    return {name: files[name] for name in remote.sizes}


def fetch_files(remote: Remote, work: taking.Work, what: str) -> dict[str, File]:
    """As `fetch`, for files that are no model."""
    done, missing = _begun(remote, work)
    _check_room(remote, work, missing)
    with asked(remote.address):
        fetched = each_file(
            what, missing, lambda name, advance: _fetched(remote, work, name, advance), workers=DOWNLOADS, finish=True
        )
    return done | fetched


def _begun(remote: Remote, work: taking.Work) -> tuple[dict[str, File], dict[str, int]]:
    """What an earlier attempt fetched, and the bytes of what is missing."""
    fs.make_folders(work.model)
    fs.remove_tree(work.folder / "fetched")
    done = {name: file for name in remote.sizes if (file := work.done(name, _source(remote, name)))}
    return done, {name: size for name, size in remote.sizes.items() if name not in done}


def _check_room(remote: Remote, work: taking.Work, missing: Mapping[str, int]) -> None:
    """Room for what is to be fetched is set aside, and given back at once: the client makes its files itself."""
    new = {name: size for name, size in missing.items() if _blob_of(remote, work, name) is None}
    for name in missing:
        fs.make_folders((work.model / name).parent)
        fs.remove_tree(work.model / name)
    taking.reserve(work, new)
    for name in new:
        fs.remove_tree(work.model / name)


def _examine(remote: Remote, work: taking.Work, shards: Mapping[str, int]) -> None:
    """Judges the checkpoint by its headers, in files as long as the shards that hold nothing but these."""
    looks = work.folder / "looks"
    fs.remove_tree(looks)

    def look(name: str, advance: bulk.Advance) -> Path:
        blob = _blob_of(remote, work, name)
        if blob is not None:
            return blob
        target = looks / name
        fs.make_folders(target.parent)
        bulk.hollow(target, _header(remote, name), shards[name])
        advance(1)
        return target

    headers = each_file("headers", dict.fromkeys(shards, 1), look, workers=DOWNLOADS, small=0, finish=True)
    paths = {name: headers.get(name, work.model / name) for name in remote.sizes}
    try:
        inspect(work.model, paths)
    except IntegrityError as error:
        if error.where:
            error.where = error.where.replace(str(work.model), str(remote.address), 1)
        raise
    fs.remove_tree(looks)


def _fetched(remote: Remote, work: taking.Work, name: str, advance: bulk.Advance) -> File:
    """The file, durable under its name in the work's model."""
    target, stated = work.model / name, remote.digests.get(name)
    blob = _blob_of(remote, work, name)
    if blob is not None:
        digest, size = bulk.hash_file(blob, advance)
        if digest == stated:
            fs.link_work(blob, target)
            return _noted(remote, work, name, File(digest=digest, size=size))
        advance(-size)  # a damaged blob, which the commit replaces
    fetched = _download(remote, work, name, advance)
    digest, size = bulk.hash_file(fetched)
    expected = stated or digest
    if digest != expected or size != remote.sizes[name]:
        fs.remove_tree(fetched)
        raise IntegrityError(
            f"the file is not what the Hub says: {size} bytes with the SHA-256 {digest}, expected {remote.sizes[name]} "
            f"bytes with {expected}",
            where=f"{remote.address}, {name}",
            remedy="run this again",
        )
    fs.rename_file(fetched, target)
    return _noted(remote, work, name, File(digest=digest, size=size))


def _noted(remote: Remote, work: taking.Work, name: str, file: File) -> File:
    work.note(name, file, _source(remote, name))
    return file


def _source(remote: Remote, name: str) -> str:
    return f"{remote.origin['source']}@{remote.commit}/{name}"


def _blob_of(remote: Remote, work: taking.Work, name: str) -> Path | None:
    """The blob with the digest that the Hub states, if the registry has one of that size."""
    stated = remote.digests.get(name)
    blob = work.store.layout.blob(stated) if stated else None
    return blob if blob and blob.is_file() and blob.stat().st_size == remote.sizes[name] else None


def _download(remote: Remote, work: taking.Work, name: str, advance: bulk.Advance) -> Path:
    from huggingface_hub import hf_hub_download
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Told(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

    folder = work.folder / "fetched"
    return Path(
        hf_hub_download(remote.address.repository, name, revision=remote.commit, local_dir=folder, tqdm_class=Told)
    )


def _header(remote: Remote, name: str) -> bytes:
    """The beginning of a shard, as long as its header."""

    def first(count: int) -> bytes:
        return beginning(remote.address.repository, remote.commit, name, count)

    begin = first(min(_FIRST, remote.sizes[name]))
    length = 8 + int.from_bytes(begin[:8], "little")
    if len(begin) < length <= min(8 + LARGEST_HEADER, remote.sizes[name]):
        begin = first(length)
    return begin[:length]


def beginning(repository: str, commit: str, name: str, count: int) -> bytes:
    """The first `count` bytes of a file; a server that knows no ranges is not listened to for longer."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(repository, name, revision=commit)
    headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    found = b""
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes():
            found += chunk
            if len(found) >= count:
                break
    return found[:count]


def _visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


@contextmanager
def asked(address: Address) -> Iterator[None]:
    """Errors of the Hub and of its client, as ours."""
    try:
        import huggingface_hub.errors as hub
    except ImportError:
        raise UsageError(
            "huggingface_hub is not installed here", where=str(address), remedy="pip install huggingface_hub"
        ) from None
    from huggingface_hub import constants

    no_answer: tuple[type[BaseException], ...] = (
        hub.OfflineModeIsEnabled,
        hub.LocalEntryNotFoundError,
        hub.FileMetadataError,
        *_no_network(),
    )
    site, where = constants.ENDPOINT, str(address)
    page = f"{site}/{address.repository}"
    try:
        yield
    except hub.GatedRepoError:
        raise UsageError(
            "this repository is gated", where=where, remedy=f"ask for access at {page}, then: hf auth login"
        ) from None
    except hub.RevisionNotFoundError:
        raise UsageError(
            f"the repository has no revision {address.revision!r}", where=where, remedy=f"{page}/commits lists them"
        ) from None
    except hub.RepositoryNotFoundError:
        raise UsageError(
            "there is no such repository, or it is private and you are not logged in",
            where=where,
            remedy="look at the name; for a private one: hf auth login",
        ) from None
    except hub.HFValidationError:
        raise UsageError("no repository can be called so", where=where, remedy="write hf://owner/name") from None
    except hub.HfHubHTTPError as error:
        raise UsageError(
            f"the Hub answers {error.response.status_code}", where=where, remedy="run this again later; it continues"
        ) from None
    except no_answer as error:
        raise UsageError(
            f"the Hub cannot be reached at {site} ({type(error).__name__})",
            where=where,
            remedy="look at the network, a proxy, HF_ENDPOINT, HF_HUB_OFFLINE; then run this again: it continues",
        ) from None


def _no_network() -> tuple[type[Exception], ...]:
    """The HTTP library's own errors: httpx in huggingface_hub 1, httpx2 in 2."""
    import huggingface_hub.errors as hub

    return tuple(base for base in hub.HfHubHTTPError.__bases__ if issubclass(base, Exception) and base is not OSError)
