"""The Hub's datasets, as far as the `datasets` client asks for them: one repository in memory at one commit."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.answers import Answer
from tests.support.hub import Hub, Request, _git_digest, _part

COMMIT = "c0ffee" * 6 + "c0ff"
_JSON = {"Content-Type": "application/json"}


class DatasetsHub(Hub):
    """`files` are those of the dataset `name`; with `gated`, none of them is given out. `stated` are the SHA-256 that
    the Hub states of files in its large file storage."""

    def __init__(self, name: str, files: dict[str, bytes], *, gated: bool = False) -> None:
        super().__init__()
        self.name = name
        self.files = files
        self.gated = gated
        self.stated: dict[str, str] = {}
        self.commit = COMMIT

    def _answer(self, request: Request) -> Answer:
        about = re.fullmatch(rf"/api/datasets/{self.name}(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", request.path)
        if about is not None:
            listed: Any = [
                {"type": "file", "path": file, "size": len(data), "oid": _git_digest(data)}
                for file, data in self.files.items()
                if file.startswith(about[3] or "")
            ]
            known = {"id": self.name, "sha": self.commit, "private": False, "tags": []}
            siblings = {"siblings": [self._sibling(file, data) for file, data in self.files.items()]}
            return Answer(200, _JSON, json.dumps(listed if about[1] == "tree" else known | siblings).encode())
        if found := re.fullmatch(rf"/datasets/{self.name}/resolve/[^/]+/(.+)", request.path):
            if self.gated:
                return Answer(403, {"X-Error-Code": "GatedRepo"}, b'{"error":"gated"}')
            data = self.files.get(found[1])
            if data is None:
                return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})
            return _part(data, request.range, {"X-Repo-Commit": self.commit, "ETag": f'"{_git_digest(data)}"'})
        return Answer(401, {"X-Error-Code": "RepoNotFound"}, b'{"error":"Repository not found"}')

    def _sibling(self, file: str, data: bytes) -> dict[str, Any]:
        stated = self.stated.get(file)
        kept = {"lfs": {"sha256": stated, "size": len(data), "pointerSize": 134}} if stated else {}
        return {"rfilename": file} | kept
