"""Models on the Hugging Face Hub: `hf://owner/name[@revision]`.

The revision (a branch, a tag, a commit, refs/pr/N; main if none is named) is resolved to its commit first, and all of
it comes from that commit (`registry.remotes`). The token is the one that huggingface_hub finds (HF_TOKEN, `hf auth
login`); it is never shown.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates.errors import UsageError
from registry import bulk, output
from registry.manifests import File
from registry.remotes import Remote, remote

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

SCHEME = "hf://"

PATIENCE = 300.0
"""Seconds without a byte until a connection is given up. A commit of many files takes the Hub a while."""

_LINK = re.compile(r"https?://\S+")
_UNREAD = (errno.ENOENT, errno.EACCES, errno.EISDIR)

_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


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
    there = {each.rfilename: (each.size or 0, each.lfs.sha256 if each.lfs else None) for each in info.siblings or []}
    commit = str(info.sha)
    return remote(str(address), f"{SCHEME}{address.repository}", commit, there, _Hub(address, commit))


@dataclass(frozen=True, slots=True)
class _Hub:
    """One commit of a repository (`registry.remotes.Place`)."""

    address: Address
    commit: str

    @property
    def called(self) -> str:
        return "the Hub"

    def asked(self) -> AbstractContextManager[None]:
        return asked(self.address)

    def beginning(self, file: str, count: int) -> bytes:
        return beginning(self.address.repository, self.commit, file, count)

    def download(self, file: str, folder: Path, advance: bulk.Advance) -> tuple[Path, File]:
        from huggingface_hub import hf_hub_download
        from tqdm import tqdm  # type: ignore[import-untyped]

        class Told(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                advance(int(n or 0))

        path = Path(
            hf_hub_download(self.address.repository, file, revision=self.commit, local_dir=folder, tqdm_class=Told)
        )
        digest, size = bulk.hash_file(path)
        return path, File(digest=digest, size=size)


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
        _prepare()
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
        raise _refusal(error, where) from None
    except no_answer as error:
        raise UsageError(
            f"the Hub cannot be reached at {site} ({type(error).__name__})",
            where=where,
            remedy="look at the network, a proxy, HF_ENDPOINT, HF_HUB_OFFLINE; then run this again: it continues",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        # of an answer, a proxy or a token that it can do nothing with
        raise UsageError(
            f"the Hub's client does not understand what it is given: {scrubbed(str(error))[:300]}",
            where=where,
            remedy="look at HF_TOKEN, HF_ENDPOINT and the proxy (HTTPS_PROXY); or run this again: it continues",
        ) from None
    except OSError as error:
        certificates = os.environ.get("SSL_CERT_FILE")
        if not certificates or not (
            isinstance(error, ssl.SSLError) or (error.filename is None and error.errno in _UNREAD)
        ):
            raise
        raise UsageError(
            f"SSL_CERT_FILE names no file of certificates that can be read: {error.strerror}",
            where=certificates,
            remedy="set it right, or not at all",
        ) from None


def _refusal(error: HfHubHTTPError, where: str) -> UsageError:
    status = error.response.status_code
    if status == 401:
        said = scrubbed((error.server_message or "").strip())[:300]
        what = "the Hub does not take the token" + (f": {said}" if said else "")
        return UsageError(what, where=where, remedy="hf auth login --force, or mend HF_TOKEN")
    if status == 429:
        seconds = error.response.headers.get("Retry-After", "")
        wait = f"wait {seconds} seconds" if seconds.isdigit() else "wait some minutes"
        return UsageError("the Hub asks for fewer requests", where=where, remedy=f"{wait}, then run this again")
    return UsageError(f"the Hub answers {status}", where=where, remedy="run this again later; it continues")


def _prepare() -> None:
    """Makes the client say what it waits for, and wait for no answer for ever, as it would."""
    from huggingface_hub import get_session

    client = logging.getLogger("huggingface_hub")
    if not any(isinstance(each, _Said) for each in client.handlers):
        client.handlers[:] = [_Said(logging.WARNING)]
    get_session().timeout = PATIENCE  # anew each time: it takes another session after some errors


class _Said(logging.Handler):
    """What the client says, without addresses: those of the storage hold signatures."""

    def emit(self, record: logging.LogRecord) -> None:
        output.hint(f"the Hub's client: {scrubbed(_LINK.sub('…', record.getMessage()))}")


def scrubbed(text: str) -> str:
    """`text` without the token. (A password in an address is shown nowhere: `registry.output`.)"""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text


def _no_network() -> tuple[type[Exception], ...]:
    """The HTTP library's own errors: httpx in huggingface_hub 1, httpx2 in 2."""
    import huggingface_hub.errors as hub

    return tuple(base for base in hub.HfHubHTTPError.__bases__ if issubclass(base, Exception) and base is not OSError)
