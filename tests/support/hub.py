"""The Hugging Face Hub, as far as its client asks: repositories in memory behind the Hub's own paths.

    with Hub() as hub:
        commit = hub.repository("org/model").commit({"config.json": b"{}", "model.safetensors": data})
        subprocess.run([...], env=os.environ | hub.environment(tmp_path))

Weights are stored as the Hub stores them: large files answer with a redirect to a storage on another host, which asks
for no token. `requests` are all that came; `faults` change answers. The client is the real one: what it asks for that
is not here is answered with 404. What writes is in `tests.support.hub_uploads`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tests.support.answers import Answer, Site

LARGE = (".safetensors", ".bin", ".model")
"""What is kept in the large file storage."""

_MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_STORED = re.compile(r"/storage/([0-9a-f]{64})")


@dataclass
class Repository:
    """`history` is every commit's files by name; `branches` and `tags` name commits. `large` are files that are kept in
    the large file storage though their names do not say so."""

    history: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    gated: bool = False
    private: bool = False
    token: str | None = None
    """Without it a private repository looks as if it were not there."""

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Makes these the files of a branch, and gives the commit's digest."""
        text = b"".join(name.encode() + hashlib.sha256(data).digest() for name, data in sorted(files.items()))
        commit = hashlib.sha1(text + str(len(self.history)).encode()).hexdigest()  # noqa: S324 - as git does
        self.history[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches.get(revision) or self.tags.get(revision, revision)
        return (commit, self.history[commit]) if commit in self.history else None

    def is_large(self, name: str) -> bool:
        return name.endswith(LARGE) or name in self.large


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    authorization: str | None
    range: str | None
    agent: str
    query: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


Fault = Callable[[Request, Answer], Answer | None]
"""Is shown each request and its answer; what it gives is answered instead, if anything."""


class Hub(Site):
    """A server on a port of its own; its files are given by `repository`.

    `faults` are shown what was done; `refusals` what is asked: what one of them gives is answered, and nothing is done.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.refusals: list[Callable[[Request], Answer | None]] = []
        self._lock = threading.Lock()
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """The same server by another name, so that the client takes it for another host."""
        return f"http://localhost:{self.port}"

    def repository(self, name: str, **about: Any) -> Repository:
        return self.repositories.setdefault(name, Repository(**about))

    def environment(self, home: Path) -> dict[str, str]:
        """What makes the real client talk to this Hub, and keep what it remembers in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def fetched(self, name: str) -> list[Request]:
        """The requests for the bytes of the file `name`, at whichever commit."""
        digests = {
            hashlib.sha256(files[name]).hexdigest()
            for repository in self.repositories.values()
            for files in repository.history.values()
            if name in files and name.endswith(LARGE)
        }
        stored = {f"/storage/{digest}" for digest in digests}
        return [
            each
            for each in self.requests
            if each.method == "GET" and (each.path in stored or (not stored and each.path.endswith(f"/{name}")))
        ]

    def respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(path)
        known = (headers.get("Authorization"), headers.get("Range"), headers.get("User-Agent", ""))
        return self.answer(Request(method, unquote(parts.path), *known, dict(parse_qsl(parts.query)), body))

    def answer(self, request: Request) -> Answer:
        """What this Hub answers, faults and all."""
        with self._lock:
            self.requests.append(request)
        for refuse in list(self.refusals):
            if (refused := refuse(request)) is not None:
                return refused
        answer = self._answer(request)
        for fault in list(self.faults):
            answer = fault(request, answer) or answer
        return answer

    def _answer(self, request: Request) -> Answer:
        if match := _STORED.fullmatch(request.path):
            return self._stored(match[1], request)
        if match := _MODEL.fullmatch(request.path):
            return self._found(match[1], match[2] or "main", request, lambda *found: self._described(match[1], *found))
        if match := _FILE.fullmatch(request.path):
            return self._found(match[1], match[2], request, lambda *found: self._file(match, request, *found))
        return Answer(404)

    def _found(
        self, name: str, revision: str, request: Request, then: Callable[[str, dict[str, bytes]], Answer]
    ) -> Answer:
        repository = self.repositories.get(name)
        if repository is None or not self._may_read(name, repository, request):
            return Answer(401, {"X-Error-Code": "RepoNotFound"}, b'{"error":"Repository not found"}')
        found = repository.files(revision)
        if found is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"}, b'{"error":"Invalid rev id"}')
        if repository.gated and _FILE.fullmatch(request.path):
            return Answer(403, {"X-Error-Code": "GatedRepo"}, b'{"error":"gated"}')
        return then(*found)

    def _may_read(self, _: str, repository: Repository, request: Request) -> bool:
        return repository.token is None or request.authorization == f"Bearer {repository.token}"

    def _file(self, match: re.Match[str], request: Request, commit: str, files: dict[str, bytes]) -> Answer:
        name = match[3]
        if name not in files:
            return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = files[name]
        if not self.repositories[match[1]].is_large(name):
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_digest(data)}"'}
            return _part(data, request.range, headers)
        digest = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
        return Answer(302, linked | {"Location": f"{self.storage}/storage/{digest}"})

    def _described(self, name: str, commit: str, files: dict[str, bytes]) -> Answer:
        repository = self.repositories[name]
        siblings: list[dict[str, Any]] = []
        for file, data in sorted(files.items()):
            large, digest = repository.is_large(file), hashlib.sha256(data).hexdigest()
            blob = _git_digest(b"pointer to " + digest.encode() if large else data)
            known = {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 134}} if large else {}
            siblings.append({"rfilename": file, "size": len(data), "blobId": blob} | known)
        about = {"id": name, "modelId": name, "sha": commit, "tags": [], "siblings": siblings}
        about |= {"private": repository.private, "gated": "auto" if repository.gated else False}
        return json_answer(about | {"cardData": card_data(files.get("README.md", b""))})

    def _stored(self, digest: str, request: Request) -> Answer:
        for repository in self.repositories.values():
            for files in repository.history.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == digest:
                        return _part(data, request.range, {"ETag": f'"{digest}"'})
        return Answer(404)


def json_answer(value: Any, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def card_data(readme: bytes) -> dict[str, Any]:
    """The YAML at the beginning of a card, as the Hub reads it."""
    match = re.match(r"---\n(.*?)\n---\n", readme.decode(), re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def _part(data: bytes, wanted: str | None, headers: dict[str, str]) -> Answer:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if match is None:
        return Answer(200, headers, data)
    first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
    return Answer(206, headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1])


def _git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - as git does
