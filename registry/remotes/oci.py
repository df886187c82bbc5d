"""Models in OCI registries: `oci://host/repository:tag`, with `@sha256:…` the very manifest of that digest.

A tag is resolved to the digest of its manifest first, and all of the model comes from that (`registry.remotes`); the
digest is what the candidate records as its source. Without TLS only a registry on this machine is spoken to, unless
that is asked for.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from gates.errors import UsageError
from registry import bulk, fs
from registry.manifests import File
from registry.remotes import Remote, modelpack, remote
from registry.remotes.distribution import Client
from registry.remotes.modelpack import Artifact

SCHEME = "oci://"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_ADDRESS = re.compile(
    rf"oci://(?P<host>{_HOST})/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@sha256:(?P<digest>[0-9a-f]{64}))?",
    re.ASCII,
)
_HERE = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """`digest` is a manifest's, in hexadecimal; `insecure` allows a registry elsewhere to be asked without TLS."""

    host: str
    repository: str
    tag: str | None
    digest: str | None
    insecure: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        version = (f":{self.tag}" if self.tag else "") + (f"@sha256:{self.digest}" if self.digest else "")
        return f"{self.source}{version}"

    @property
    def source(self) -> str:
        return f"{SCHEME}{self.host}/{self.repository}"

    @property
    def site(self) -> str:
        """Where the registry answers."""
        plain = self.insecure or _HERE.fullmatch(self.host)
        return f"{'http' if plain else 'https'}://{self.host}"


def parse(source: str, *, insecure: bool = False) -> Address | None:
    """The address that `source` is; None if it is none.

    Raises:
        UsageError: it begins like one; or it is none, and `insecure` is asked for.
    """
    if not source.startswith(SCHEME):
        if insecure:
            raise UsageError("--insecure is for oci://…", where=source, remedy="leave it out")
        return None
    match = _ADDRESS.fullmatch(source)
    if match is None:
        raise UsageError(
            "this is no address in an OCI registry",
            where=source,
            remedy="write oci://host/repository:tag, all but the tag in small letters",
        )
    return Address(match["host"], match["repository"], match["tag"], match["digest"], insecure)


def resolve(address: Address) -> Remote:
    """The manifest that `address` names now, and the model's files in it; all others stay in the registry.

    Raises:
        UsageError: there is no such registry, repository or tag, it holds something else than a model, or it refuses.
        IntegrityError: the manifest is not what its digest says, or is malformed.
    """
    if address.tag is None and address.digest is None:
        raise UsageError("which version?", where=str(address), remedy=f"name a tag: {address}:latest")
    client = Client(address.site, address.repository, where=str(address))
    with client.asked():
        found = client.manifest(f"sha256:{address.digest}" if address.digest else str(address.tag))
    if found is None:
        raise UsageError(
            "there is no such tag or digest, or no such repository",
            where=str(address),
            remedy=f"look at what is there: oras repo tags {address.host}/{address.repository}",
        )
    artifact = modelpack.read(found.data, where=f"{address}, sha256:{found.digest[:12]}")
    there: dict[str, tuple[int, str | None]] = {name: (file.size, file.digest) for name, file in artifact.files.items()}
    return remote(str(address), address.source, f"sha256:{found.digest}", there, _Repository(client, artifact))


@dataclass(frozen=True, slots=True)
class _Repository:
    """One version of a model in a repository (`registry.remotes.Place`)."""

    client: Client
    artifact: Artifact

    @property
    def called(self) -> str:
        return "the OCI registry"

    def asked(self) -> AbstractContextManager[None]:
        return self.client.asked()

    def beginning(self, file: str, count: int) -> bytes:
        found = b""
        for chunk in self.client.blob(self.artifact.files[file], first=count):
            found += chunk
            if len(found) >= count:
                break
        return found[:count]

    def download(self, file: str, folder: Path, advance: bulk.Advance) -> tuple[Path, File]:
        target = folder / file
        fs.make_folders(target.parent)
        fs.remove_tree(target)
        digest, size = bulk.write_chunks(target, self.client.blob(self.artifact.files[file]), advance)
        return target, File(digest=digest, size=size)
