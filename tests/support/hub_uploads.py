"""The Hub where it is written to: accounts, new repositories, large files, commits, pull requests, tags.

    with WritableHub() as hub:
        hub.accounts["hf_…"] = Account("me", orgs={"org": "write"})

It refuses what the Hub refuses: bytes that are not what their SHA-256 says, a commit of a large file that was never
sent, one on another parent than the newest, a merge of a draft or of what conflicts, a tag that is there, a reader who
writes.
`received` counts the bytes of each large file that came.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.support.answers import Answer
from tests.support.hub import LARGE, Hub, Repository, Request, _git_digest, card_data, json_answer

CREATED = "2026-11-22T10:00:00.000Z"
TOO_LARGE_FOR_GIT = 10 << 20
GIT_ATTRIBUTES = b"".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n".encode() for ending in LARGE)

Files = dict[str, bytes]


@dataclass
class Account:
    """`orgs` are roles by organisation; `role` is the token's: read, write or fineGrained."""

    name: str
    orgs: dict[str, str] = field(default_factory=dict)
    role: str = "write"

    def may_write(self, namespace: str) -> bool:
        return self.role != "read" and (namespace == self.name or self.orgs.get(namespace) in ("write", "admin"))

    def may_read(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


@dataclass
class PullRequest:
    number: int
    title: str
    author: str
    base: str
    status: str = "draft"


@dataclass(frozen=True)
class Asked:
    """A request about a repository that its sender may read."""

    request: Request
    name: str
    repository: Repository
    account: Account | None

    @property
    def json(self) -> Any:
        return json.loads(self.request.body)


class WritableHub(Hub):
    """`part`: large files of more bytes than that are asked for in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts: dict[str, Account] = {}
        self.objects: dict[str, Files] = {}
        self.pull_requests: dict[str, list[PullRequest]] = {}
        self.received: Counter[str] = Counter()
        self.part: int | None = None
        self.too_large = TOO_LARGE_FOR_GIT
        self._parts: dict[tuple[str, int], bytes] = {}

    def main(self, name: str) -> Files:
        found = self.repositories[name].files("main")
        assert found is not None
        return found[1]

    def _may_read(self, name: str, repository: Repository, request: Request) -> bool:
        if not repository.private:
            return super()._may_read(name, repository, request)
        account = self._account(request)
        return account is not None and account.may_read(name.partition("/")[0])

    def _account(self, request: Request) -> Account | None:
        return self.accounts.get((request.authorization or "").removeprefix("Bearer "))

    def _answer(self, request: Request) -> Answer:
        with self._lock:
            for method, pattern, answer in self._routes():
                match = re.fullmatch(pattern, request.path)
                if method == request.method and match is not None:
                    return answer(request, *match.groups())
        return super()._answer(request)

    def _routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        repository = "/api/models/([^/]+/[^/]+)"
        return [
            ("GET", "/api/whoami-v2", self._whoami),
            ("POST", "/api/validate-yaml", self._validate),
            ("POST", "/api/repos/create", self._create),
            ("GET", f"{repository}/auth-check/write", self._writing(lambda _: Answer(200))),
            ("GET", f"{repository}/refs", self._reading(self._refs)),
            ("GET", f"{repository}/tree/([0-9a-f]{{40}})", self._reading(self._tree)),
            ("GET", f"{repository}/discussions", self._reading(self._listed)),
            ("POST", f"{repository}/discussions", self._reading(self._opened)),
            ("GET", rf"{repository}/discussions/(\d+)", self._reading(self._details)),
            ("POST", rf"{repository}/discussions/(\d+)/status", self._writing(self._status)),
            ("POST", rf"{repository}/discussions/(\d+)/merge", self._writing(self._merge)),
            ("POST", f"{repository}/preupload/(.+)", self._writing(self._preupload)),
            ("POST", f"{repository}/commit/(.+)", self._writing(self._commit)),
            ("POST", f"{repository}/tag/(.+)", self._writing(self._tag)),
            ("POST", "/([^/]+/[^/]+).git/info/lfs/objects/batch", self._writing(self._batch)),
            ("POST", "/lfs-verify/([^/]+/[^/]+)", self._writing(self._verify)),
            ("POST", "/lfs-complete/([^/]+/[^/]+)/([0-9a-f]{64})", self._complete),
            ("PUT", "/lfs-put/([^/]+/[^/]+)/([0-9a-f]{64})", self._put),
            ("PUT", r"/lfs-part/([^/]+/[^/]+)/([0-9a-f]{64})/(\d+)", self._put_part),
        ]

    def _reading(self, then: Callable[..., Answer]) -> Callable[..., Answer]:
        def answer(request: Request, name: str, *more: str) -> Answer:
            repository = self.repositories.get(name)
            if repository is None or not self._may_read(name, repository, request):
                return _error(401, "Repository not found", "RepoNotFound")
            return then(Asked(request, name, repository, self._account(request)), *more)

        return answer

    def _writing(self, then: Callable[..., Answer]) -> Callable[..., Answer]:
        def answer(asked: Asked, *more: str) -> Answer:
            if asked.account is None:
                return _error(401, "Invalid username or password.")
            if not asked.account.may_write(asked.name.partition("/")[0]):
                return _error(403, "You don't have the rights to write here")
            return then(asked, *more)

        return self._reading(answer)

    def _whoami(self, request: Request) -> Answer:
        account = self._account(request)
        if account is None:
            return _error(401, "Invalid credentials in Authorization header")
        orgs = [{"name": name, "roleInOrg": role} for name, role in account.orgs.items()]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}}
        return json_answer({"type": "user", "name": account.name, "orgs": orgs, "auth": token})

    def _validate(self, request: Request) -> Answer:
        about = card_data(json.loads(request.body)["content"].encode())
        licence, base = about.get("license"), about.get("base_model", [])
        errors = [{"message": "license must be an id"}] if licence is not None and " " in str(licence) else []
        bases = base if isinstance(base, list) else [base]
        errors += [{"message": "base_model"} for each in bases if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(each))]
        return json_answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self, request: Request) -> Answer:
        wanted, account = json.loads(request.body), self._account(request)
        if account is None:
            return _error(401, "Invalid username or password.")
        namespace = wanted.get("organization") or account.name
        if not account.may_write(namespace):
            return _error(403, f"You don't have the rights to create a model under the namespace {namespace}")
        name = f"{namespace}/{wanted['name']}"
        if name in self.repositories:
            return _error(409, "You already created this model repo")
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.repository(name, private=bool(private)).commit({".gitattributes": GIT_ATTRIBUTES})
        return json_answer({"url": f"{self.url}/{name}", "name": name})

    def _tree(self, asked: Asked, commit: str) -> Answer:
        found = asked.repository.files(commit)
        if found is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        listed = []
        for file, data in sorted(found[1].items()):
            oid = hashlib.sha256(data).hexdigest()
            large = (
                {"lfs": {"oid": oid, "size": len(data), "pointerSize": 134}} if asked.repository.is_large(file) else {}
            )
            listed.append({"type": "file", "path": file, "size": len(data), "oid": _git_digest(data)} | large)
        return json_answer(listed)

    def _refs(self, asked: Asked) -> Answer:
        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": at} for ref, at in refs.items()]

        branches = {ref: at for ref, at in asked.repository.branches.items() if not ref.startswith("refs/")}
        found = {"branches": listed("heads", branches), "converts": [], "tags": listed("tags", asked.repository.tags)}
        if "include_prs" in asked.request.query:
            found["pullRequests"] = []
        return json_answer(found)

    def _listed(self, asked: Asked) -> Answer:
        kinds = {"open": ("draft", "open"), "closed": ("closed", "merged")}.get(
            asked.request.query.get("status", "open")
        )
        found = [
            each
            for each in self.pull_requests.get(asked.name, [])
            if (kinds is None or each.status in kinds) and asked.request.query.get("author") in (None, each.author)
        ]
        page, size = int(asked.request.query.get("p", 0)), 2  # small, so that pages are asked for
        shown = [_discussion(asked.name, each) for each in found[page * size : (page + 1) * size]]
        return json_answer({"discussions": shown, "count": len(found), "start": page * size})

    def _opened(self, asked: Asked) -> Answer:
        wanted, account = asked.json, asked.account
        if account is None:
            return _error(401, "Invalid username or password.")
        if not wanted["pullRequest"] or not 3 <= len(wanted["title"]) <= 200:
            return _error(400, "only pull requests with a title are known here")
        opened = self.pull_requests.setdefault(asked.name, [])
        opened.append(PullRequest(len(opened) + 1, wanted["title"], account.name, asked.repository.branches["main"]))
        asked.repository.branches[f"refs/pr/{len(opened)}"] = asked.repository.branches["main"]
        return json_answer({"num": len(opened)})

    def _request_of(self, name: str, number: str) -> PullRequest | None:
        return next((each for each in self.pull_requests.get(name, []) if each.number == int(number)), None)

    def _details(self, asked: Asked, number: str) -> Answer:
        found = self._request_of(asked.name, number)
        if found is None:
            return _error(404, "no such discussion")
        changes = {"base": "refs/heads/main"}
        return json_answer(
            _discussion(asked.name, found) | {"changes": changes, "filesWithConflicts": [], "events": []}
        )

    def _status(self, asked: Asked, number: str) -> Answer:
        found, wanted = self._request_of(asked.name, number), asked.json["status"]
        if found is None or found.status == "merged" or found.status == wanted:
            return _error(400, f"it cannot become {wanted}")
        found.status = wanted
        event = {"id": "1", "type": "status-change", "createdAt": CREATED, "author": {"name": "x"}}
        return json_answer({"newStatus": event | {"data": {"status": wanted}}})

    def _merge(self, asked: Asked, number: str) -> Answer:
        found = self._request_of(asked.name, number)
        if found is None:
            return _error(404, "no such discussion")
        if found.status != "open":
            return _error(403, f"a pull request that is {found.status} cannot be merged")
        base, head = (
            asked.repository.history[found.base],
            asked.repository.history[asked.repository.branches[f"refs/pr/{number}"]],
        )
        changed = {file for file in base.keys() | head.keys() if base.get(file) != head.get(file)}
        main = dict(asked.repository.history[asked.repository.branches["main"]])
        if any(main.get(file) != base.get(file) for file in changed):
            return _error(409, "the pull request conflicts with main")
        merged = {file: data for file, data in main.items() if file not in changed}
        asked.repository.commit(merged | {file: head[file] for file in changed if file in head})
        found.status = "merged"
        return json_answer({})

    def _preupload(self, asked: Asked, revision: str) -> Answer:
        there = asked.repository.files(revision)
        if there is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        modes = []
        for file in asked.json["files"]:
            path = file["path"]
            large = path.endswith(LARGE) or path in asked.repository.large or file["size"] > self.too_large
            known = there[1].get(path)
            digest = None if known is None else hashlib.sha256(known).hexdigest() if large else _git_digest(known)
            mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            modes.append(mode | ({"oid": digest} if digest else {}))
        return json_answer({"files": modes})

    def _batch(self, asked: Asked) -> Answer:
        found = []
        for each in asked.json["objects"]:
            oid, size = each["oid"], each["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.objects.get(asked.name, {}):
                upload: dict[str, Any] = {"href": f"{self.storage}/lfs-put/{asked.name}/{oid}?signature=secret"}
                if self.part and size > self.part:
                    parts = -(-size // self.part)
                    urls = {str(n + 1): f"{self.storage}/lfs-part/{asked.name}/{oid}/{n + 1}" for n in range(parts)}
                    header = {"chunk_size": str(self.part), **urls}
                    upload = {"href": f"{self.url}/lfs-complete/{asked.name}/{oid}", "header": header}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs-verify/{asked.name}"}}
            found.append(answer)
        return json_answer({"objects": found, "transfer": "basic"})

    def _put(self, request: Request, name: str, oid: str) -> Answer:
        if request.authorization is not None:
            return _error(400, "the storage takes a signature, and no other authorization")
        return self._keep(name, oid, request.body)

    def _put_part(self, request: Request, _: str, oid: str, number: str) -> Answer:
        self._parts[oid, int(number)] = request.body
        return Answer(200, {"ETag": hashlib.md5(request.body, usedforsecurity=False).hexdigest()})

    def _complete(self, request: Request, name: str, oid: str) -> Answer:
        parts = json.loads(request.body)["parts"]
        return self._keep(name, oid, b"".join(self._parts[oid, each["partNumber"]] for each in parts))

    def _keep(self, name: str, oid: str, data: bytes) -> Answer:
        if hashlib.sha256(data).hexdigest() != oid:
            return _error(400, "XAmzContentSHA256Mismatch")
        self.objects.setdefault(name, {})[oid] = data
        self.received[oid] += len(data)
        return json_answer({})

    def _verify(self, asked: Asked) -> Answer:
        wanted = asked.json
        there = self.objects.get(asked.name, {}).get(wanted["oid"])
        return json_answer({}) if there is not None and len(there) == wanted["size"] else _error(404, "not found")

    def _commit(self, asked: Asked, revision: str) -> Answer:
        header, *operations = map(json.loads, asked.request.body.splitlines())
        if revision not in asked.repository.branches:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        newest = asked.repository.branches[revision]
        if header["value"].get("parentCommit") not in (None, newest):
            return _error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(asked.repository.history[newest])
        for each in operations:
            value = each["value"]
            path = value["path"]
            if each["key"] == "file":
                files[path] = base64.b64decode(value["content"])
                if len(files[path]) > self.too_large:
                    return _error(400, f"{path} is too large for git")
            elif each["key"] == "lfsFile":
                if value["oid"] not in self.objects.get(asked.name, {}):
                    return _error(400, f"the pointer {path} leads to a large file that was never sent")
                files[path] = self.objects[asked.name][value["oid"]]
                if not asked.repository.is_large(path):
                    asked.repository.large.add(path)
                    files[".gitattributes"] += f"{path} filter=lfs diff=lfs merge=lfs -text\n".encode()
            elif path not in files:
                return _error(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                del files[path]
        if "README.md" in files:
            try:
                card_data(files["README.md"])
            except yaml.YAMLError:
                return _error(400, "Invalid metadata in README.md")
        commit = asked.repository.commit(files, branch=revision)
        return json_answer({"commitUrl": f"{self.url}/{asked.name}/commit/{commit}", "commitOid": commit})

    def _tag(self, asked: Asked, revision: str) -> Answer:
        found, tag = asked.repository.files(revision), asked.json["tag"]
        if found is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        if tag in asked.repository.tags:
            return _error(409, "Tag reference exists already")
        asked.repository.tags[tag] = found[0]
        return json_answer({})


def _discussion(name: str, each: PullRequest) -> dict[str, Any]:
    return {
        "title": each.title,
        "num": each.number,
        "author": {"name": each.author},
        "createdAt": CREATED,
        "status": each.status,
        "repo": {"name": name, "type": "model"},
        "isPullRequest": True,
    }


def _error(status: int, message: str, code: str | None = None) -> Answer:
    answer = json_answer({"error": message}, status)
    return Answer(
        status, answer.headers | {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}), answer.body
    )
