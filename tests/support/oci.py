"""A real OCI registry (`docker-registry`) with a folder of its own, and a proxy before it that sees, breaks and forges.

    with Registry(folder) as registry, Proxy(registry.port) as proxy:
        oci://127.0.0.1:{proxy.port}/…

The proxy passes everything on unless one of `refusals` (shown the request) or `faults` (shown the answer too) gives
another answer. With `users` it asks for credentials itself: as a registry does that keeps passwords, or that sends one
to another service for a token of a stated scope.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.answers import Answer, Site

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    """`docker-registry` on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.root = folder / "registry"
        settings = folder / "registry.yml"
        settings.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.root}}}, delete: {{enabled: true}}}}\n"
            f'http: {{addr: "127.0.0.1:{self.port}"}}\n'
        )
        self._process = subprocess.Popen(
            ["docker-registry", "serve", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                self._ask("GET", "/v2/")
            except OSError:
                assert self._process.poll() is None, "docker-registry ended"
                threading.Event().wait(0.05)
            else:
                return
        raise AssertionError("docker-registry does not answer")

    def get(self, path: str) -> bytes:
        """What lies below /v2/. KeyError, if nothing does."""
        status, _, body = self._ask("GET", f"/v2/{path}", {"Accept": MANIFEST})
        if status == 404:
            raise KeyError(path)
        assert status == 200, body
        return body

    def manifest(self, repository: str, tag: str) -> dict[str, Any]:
        return json.loads(self.get(f"{repository}/manifests/{tag}"))

    def put(self, repository: str, data: bytes) -> str:
        """Puts a blob there and gives its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        _, headers, _ = self._ask("POST", f"/v2/{repository}/blobs/uploads/")
        place = urlsplit(headers["Location"])
        status, _, body = self._ask("PUT", f"{place.path}?{place.query}&digest={digest}", body=data)
        assert status == 201, body
        return digest

    def tag(self, repository: str, tag: str, manifest: dict[str, Any]) -> None:
        body = json.dumps(manifest).encode()
        status, _, said = self._ask("PUT", f"/v2/{repository}/manifests/{tag}", {"Content-Type": MANIFEST}, body)
        assert status == 201, said

    def _ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    authorization: str | None
    size: int
    body: bytes = field(repr=False)


@dataclass
class Users:
    """Who may do what. `kind` is how one says who one is: basic or bearer."""

    kind: str
    name: str = "me"
    password: str = "secret"  # noqa: S105 - nobody's
    rights: str = "pull,push"
    tokens: dict[str, str] = field(default_factory=dict)


class Proxy(Site):
    """Before the registry on `port` of this machine."""

    def __init__(self, port: int) -> None:
        self.requests: list[Asked] = []
        self.refusals: list[Callable[[Asked], Answer | None]] = []
        self.faults: list[Callable[[Asked, Answer], Answer | None]] = []
        self.users: Users | None = None
        self._behind = port
        self._lock = threading.Lock()
        super().__init__()

    def clear(self) -> None:
        self.requests.clear()
        self.refusals.clear()
        self.faults.clear()
        self.users = None

    def respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        sent = {name: value for name, value in headers.items() if name != "Connection"}
        return self.answer(Asked(method, path, headers.get("Authorization"), len(body), body), sent)

    def answer(self, asked: Asked, headers: dict[str, str]) -> Answer:
        with self._lock:  # so that tests count in an order
            self.requests.append(asked)
            for refuse in self.refusals:
                if refused := refuse(asked):
                    return refused
            answer = self._let_in(asked) or self._passed_on(asked, headers)
            for fault in self.faults:
                answer = fault(asked, answer) or answer
            return answer

    def _passed_on(self, asked: Asked, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._behind, timeout=60)
        try:
            connection.request(asked.method, asked.path, body=asked.body or None, headers=headers)
            response = connection.getresponse()
            kept = {
                name: value
                for name, value in response.getheaders()
                if name not in ("Content-Length", "Connection", "Transfer-Encoding", "Date")
            }
            length = response.headers["Content-Length"]
            if asked.method == "HEAD" and length is not None:
                kept["Content-Length"] = length
            return Answer(response.status, kept, response.read())
        finally:
            connection.close()

    def _let_in(self, asked: Asked) -> Answer | None:
        """What is answered to somebody who may not do this; None if they may."""
        users = self.users
        if users is None:
            return None
        known = base64.b64encode(f"{users.name}:{users.password}".encode()).decode()
        parts = urlsplit(asked.path)
        if parts.path == "/token":
            if asked.authorization != f"Basic {known}":
                return Answer(401)
            scope = parse_qs(parts.query)["scope"][0]
            repository, _, wanted = scope.removeprefix("repository:").rpartition(":")
            given = ",".join(each for each in wanted.split(",") if each in users.rights.split(","))
            token = f"token-{len(users.tokens)}-{users.password}"
            users.tokens[token] = f"{repository}:{given}"
            return Answer(200, {"Content-Type": "application/json"}, json.dumps({"token": token}).encode())
        if users.kind == "basic":
            if asked.authorization == f"Basic {known}":
                return None
            return Answer(401, {"Www-Authenticate": 'Basic realm="Registry"'}, _error("UNAUTHORIZED"))
        match = re.match(r"/v2/(.*)/(blobs|manifests)/", parts.path)
        assert match is not None
        needed = {"pull"} if asked.method in ("GET", "HEAD") else {"pull", "push"}
        held = users.tokens.get((asked.authorization or "").removeprefix("Bearer "), "")
        repository, _, rights = held.rpartition(":")
        if repository == match[1] and needed <= set(rights.split(",")):
            return None
        scope = f"repository:{match[1]}:{','.join(sorted(needed))}"
        said = f'Bearer realm="http://127.0.0.1:{self.port}/token",service="here",scope="{scope}"'
        status, why = (401, "UNAUTHORIZED") if not held or users.rights == "pull,push" else (403, "DENIED")
        return Answer(status, {"Www-Authenticate": said}, _error(why, f"you said {asked.authorization}"))


def _error(code: str, message: str = "no") -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
