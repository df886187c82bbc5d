"""A repository in an OCI registry, by the OCI distribution protocol: manifests and blobs are looked for, read, sent.

Who one is says `credentials`. The transfers are ours, for oras reads a file into memory whole to send it, and writes
one without looking at its digest. A blob is sent in one request. A credential goes to its own host alone, and to the
service that this host sends one to for a token: no host that it redirects to is listened to about that.

Source: github.com/opencontainers/distribution-spec 1.1 (spec.md).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from gates import canonical
from gates.errors import BusyError, IntegrityError, SluiceError, UsageError
from registry import bulk
from registry.manifests import File
from registry.remotes import credentials
from registry.remotes.modelpack import LARGEST, MANIFEST

_ACCEPTED = (
    MANIFEST,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
"""What is asked for: what is no model is to be told from what is not there."""

_CHUNK = 1 << 20
_PATIENCE = (10, 60)
"""Seconds until a connection stands, and between two pieces of an answer."""

_TRIES = 3
_PASSING = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest as the registry gave it, and the SHA-256 of these bytes."""

    data: bytes
    digest: str


class Client:
    """Speaks to one repository. To be used inside of `asked`.

    Args:
        site: such as https://host:port.
        where: what the repository is called in messages.
    """

    def __init__(self, site: str, repository: str, *, where: str) -> None:
        self._site, self._repository, self._where = site, repository, where
        self._session = _session(self._where)
        self._authorization: str | None = None
        self._secrets: set[str] = set()

    def manifest(self, reference: str) -> Found | None:
        """What a tag, or a digest (sha256:…), names; None if there is nothing.

        Raises:
            IntegrityError: it is not what the registry says it is.
        """
        headers = {"Accept": ", ".join(_ACCEPTED)}
        with self._ask("GET", f"manifests/{reference}", headers=headers, stream=True) as answer:
            if answer.status_code == 404:
                return None
            self._demand(answer, 200)
            data = b""
            for chunk in answer.iter_content(_CHUNK):
                data += chunk
                if len(data) > LARGEST:
                    raise IntegrityError("the manifest is too large", where=self._where, remedy="name another version")
            stated = answer.headers.get("Docker-Content-Digest", "")
        digest = canonical.digest(data)
        for expected in (reference, stated):
            if expected.startswith("sha256:") and expected != f"sha256:{digest}":
                raise IntegrityError(
                    f"the manifest is not what its digest says: sha256:{digest}, expected {expected}",
                    where=self._where,
                    remedy="run this again; if it stays so, the registry is damaged",
                )
        return Found(data, digest)

    def has(self, blob: File) -> bool:
        """Whether the repository holds the blob."""
        with self._ask("HEAD", f"blobs/sha256:{blob.digest}") as answer:
            if answer.status_code == 404:
                return False
            self._demand(answer, 200)
            return bool(answer.headers.get("Content-Length", str(blob.size)) == str(blob.size))

    def blob(self, blob: File, *, first: int | None = None) -> Iterator[bytes]:
        """The bytes of a blob, or its beginning; never more than it has.

        Raises:
            IntegrityError: there is no such blob, or it is longer.
        """
        headers = {"Accept-Encoding": "identity"}
        if first is not None and 0 < first < blob.size:
            headers["Range"] = f"bytes=0-{first - 1}"
        with self._ask("GET", f"blobs/sha256:{blob.digest}", headers=headers, stream=True) as answer:
            if answer.status_code == 404:
                raise IntegrityError(
                    f"the registry has no blob sha256:{blob.digest}, and a manifest names it",
                    where=self._where,
                    remedy="have it pushed again",
                )
            self._demand(answer, 200, 206)
            size = 0
            for chunk in answer.iter_content(_CHUNK):
                size += len(chunk)
                if size > blob.size:
                    raise IntegrityError(
                        f"the blob sha256:{blob.digest} is longer than the {blob.size} bytes that its manifest states",
                        where=self._where,
                        remedy="have it pushed again",
                    )
                yield chunk

    def send(self, blob: File, content: bytes | Path, advance: bulk.Advance) -> None:
        """Sends a blob. The registry holds its bytes against its digest.

        Raises:
            IntegrityError: they differ.
        """
        with self._ask("POST", "blobs/uploads/") as answer:
            self._demand(answer, 202)
            url = self._upload_address(answer, blob)
        data = _Body(content, blob.size, advance) if isinstance(content, Path) and blob.size else content
        headers = {"Content-Type": "application/octet-stream"}
        with self._ask("PUT", url, headers=headers, data=data if blob.size else b"") as answer:
            self._demand(answer, 201, 204)
        if isinstance(content, bytes):
            advance(blob.size)

    def _upload_address(self, answer: Any, blob: File) -> str:
        """Where a blob is to be sent, as the registry says in its answer."""
        remedy = "tell its administrator: behind a proxy it needs to know its own address"
        try:
            place = urlsplit(urljoin(str(answer.url), answer.headers["Location"]))
        except (KeyError, ValueError):
            place = None
        if place is None or place.scheme not in ("http", "https"):
            what = "the registry does not say where the files are to be sent"
            raise UsageError(what, where=self._where, remedy=remedy)
        if self._site.startswith("https:") and place.scheme != "https":
            what = "the registry wants the files sent to an address without TLS"
            raise UsageError(what, where=self._where, remedy=remedy)
        query = f"{place.query}{'&' if place.query else ''}digest=sha256:{blob.digest}"
        return str(place._replace(query=query, fragment="").geturl())

    def send_manifest(self, tag: str, data: bytes) -> None:
        """Makes `tag` name the manifest `data`, all of whose blobs are there."""
        with self._ask("PUT", f"manifests/{tag}", headers={"Content-Type": MANIFEST}, data=data) as answer:
            self._demand(answer, 201, 202)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Errors of the network, as ours; no credential is in them."""
        from requests import exceptions
        from urllib3.exceptions import HTTPError

        try:
            yield
        except exceptions.SSLError:
            raise UsageError(
                f"no connection with TLS to {self._site}",
                where=self._where,
                remedy="look at its certificate (REQUESTS_CA_BUNDLE names authorities of your own); "
                "--insecure speaks to a registry that has no TLS",
            ) from None
        except (exceptions.RequestException, HTTPError) as error:  # of what it cannot parse, the latter
            raise UsageError(
                f"the registry at {self._site} cannot be reached, or broke off ({type(error).__name__})",
                where=self._where,
                remedy="look at the address, the network, a proxy; then run this again: it continues",
            ) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise UsageError(  # so says requests of a file of certificates that is not there
                str(error), where=self._where, remedy="set REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE right, or not at all"
            ) from None

    def _ask(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Any:
        """The answer to a request, made again with credentials if the registry asks for them.

        Args:
            path: below the repository; or the whole address that the registry named.
        """
        url = path if path.startswith("http") else f"{self._site}/v2/{self._repository}/{path}"
        ours = self._is_ours(url)

        def ask(authorization: str | None) -> Any:
            known = {"Authorization": authorization} if ours and authorization else {}
            return self._session.request(method, url, headers={**(headers or {}), **known}, **more)

        used = self._authorization
        answer = ask(used)
        # what another host says, to which it was redirected, would have the password sent where that host wants it
        if answer.status_code in (401, 403) and ours and self._is_ours(answer.url) and self._log_in(answer, used):
            answer.close()
            answer = ask(self._authorization)
        return answer

    def _is_ours(self, url: str) -> bool:
        """Whether an address is the registry's own."""
        return urlsplit(url)[:2] == urlsplit(self._site)[:2]

    def _log_in(self, answer: Any, used: str | None) -> bool:
        """Whether there are now other credentials than were `used`, for what the registry asks in `answer`."""
        found, secrets = credentials.answering(answer, self._session, self._site, self._repository, where=self._where)
        self._secrets |= secrets
        if found is None or found == used:
            return False
        self._authorization = found
        return True

    def _demand(self, answer: Any, *statuses: int) -> None:
        """
        Raises:
            SluiceError: the registry refuses, or fails.
        """
        if answer.status_code not in statuses:
            raise _refusal(answer.status_code, *self._said(answer), where=self._where)

    def _said(self, answer: Any) -> tuple[str, str]:
        """The codes of what the registry reports, and its words; no credential is in them."""
        try:
            reported = answer.json()["errors"]
            codes = " ".join(str(each.get("code", "")) for each in reported)
            words = "; ".join(str(each.get("message", "")) for each in reported)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "", ""
        for secret in filter(None, self._secrets):
            words = words.replace(secret, "***")
        return codes, re.sub(r"[\x00-\x1f\x7f]", " ", words)[:300]


def _refusal(status: int, codes: str, words: str, *, where: str) -> SluiceError:
    because = f": {words}" if words else ""
    if status in (401, 403):
        return UsageError(
            f"the registry does not let you do this ({status}){because}",
            where=where,
            remedy="docker login, or oras login, as somebody who may",
        )
    if "DIGEST_INVALID" in codes:
        return IntegrityError(
            f"what came is not what its digest says, so the registry refused it{because}",
            where=where,
            remedy="registry verify says whether it is damaged here; then run this again",
        )
    if status == 404:
        return UsageError(
            f"there is no such repository, or no OCI registry ({status}){because}",
            where=where,
            remedy="look at the address; in some registries a repository has to be made first",
        )
    if status in (409, 412):
        return BusyError(
            f"somebody else changes the repository, or this tag cannot be moved{because}",
            where=where,
            remedy="run this again; if it stays so, choose another tag",
        )
    if status == 413:
        what = f"the registry, or a proxy before it, takes no file as large as this{because}"
        return UsageError(what, where=where, remedy="its administrator sets the limit")
    if status == 429:
        remedy = "wait some minutes, then run this again: it continues"
        return UsageError("the registry asks for fewer requests", where=where, remedy=remedy)
    return UsageError(f"the registry answers {status}{because}", where=where, remedy="run this again; it continues")


class _Body:
    """A file's bytes, from their beginning whenever they are asked for: with another token a request is made again.

    What is read again is told once. That it cannot be read is not taken for a fault of the network.
    """

    def __init__(self, path: Path, size: int, advance: bulk.Advance) -> None:
        self._path, self._size, self._advance = path, size, advance
        self._most = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[memoryview]:
        at = 0

        def told(count: int) -> None:
            nonlocal at
            at += count
            if at > self._most:
                self._advance(at - self._most)
                self._most = at

        try:
            yield from bulk.pieces(self._path, told)
        except OSError as error:
            raise IntegrityError(
                f"this file of the model cannot be read any more: {error.strerror}",
                where=str(self._path),
                remedy="registry verify says what is damaged or missing",
            ) from None


def _session(where: str) -> Any:
    """What changes nothing is asked again, some times and ever later."""
    try:
        from oras.logger import logger
        from oras.provider import Registry
    except ImportError:
        raise UsageError("oras is not installed here", where=where, remedy="pip install oras") from None
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    class Patient(HTTPAdapter):
        def send(self, *asked: Any, **options: Any) -> Any:  # also what oras asks of a token service
            return super().send(*asked, **{**options, "timeout": _PATIENCE})

    # what they say of an address may hold its signature
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logger.set_level(logging.CRITICAL)
    session = Registry().session  # which keeps no cookies: some registries take who does for a browser
    again = Retry(
        _TRIES,
        backoff_factor=0.5,
        status_forcelist=_PASSING,
        allowed_methods=("GET", "HEAD"),
        raise_on_status=False,
        respect_retry_after_header=False,  # a registry may say an hour
    )
    session.auth = lambda request: request  # else requests puts what ~/.netrc holds in the place of a token
    for scheme in ("https://", "http://"):
        session.mount(scheme, Patient(max_retries=again))
    return session
