"""A model as an OCI artifact, a layer a file, in the media types of the CNCF's ModelPack: written, and read.

The manifest is an OCI image manifest with `artifactType`; a layer's path stands in two annotations, the one that
`oras pull` names files by and ModelPack's own. There is no time in it: the same files give the same digest.

Sources: github.com/modelpack/model-spec (docs/spec.md, docs/annotations.md, schema/config-schema.json, as of June
2026) and github.com/opencontainers/image-spec 1.1 (manifest.md, descriptor.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry.manifests import File, Shape
from registry.sources import RECORDS

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
LARGEST = 4 << 20
"""Bytes of a manifest: what OCI registries have to take."""

_CONFIG = "application/vnd.cncf.model.config.v1+json"
_LAYER = "application/vnd.cncf.model.{kind}.v1.raw"
_RAW = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.raw")
_TITLE = "org.opencontainers.image.title"
_PATH = "org.cncf.model.filepath"
_OURS = "sluice.manifest"
"""The annotation that holds the digest of a candidate's manifest."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PLAIN = re.compile(r"[^/\\\x00-\x1f]+")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model in an OCI registry: its files by name, the blob of its configuration, and the digest of the candidate's
    manifest, if Sluice wrote it."""

    files: dict[str, File]
    config: File
    candidate: str | None


def manifest(files: Mapping[str, File], config: bytes, *, candidate: str) -> bytes:
    """The manifest of an artifact.

    Args:
        files: the model's and what goes with it; their names are relative paths.
        config: see `config`.
        candidate: the digest of its manifest in the registry that it comes from.
    """
    return canonical.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": _descriptor(_CONFIG, File(digest=canonical.digest(config), size=len(config))),
            "layers": [
                _descriptor(_LAYER.format(kind=_kind(name)), file) | {"annotations": {_TITLE: name, _PATH: name}}
                for name, file in sorted(files.items())
            ],
            "annotations": {_OURS: candidate},
        }
    )


def config(name: str, shape: Shape, files: Mapping[str, File]) -> bytes:
    """What ModelPack wants to know of a model: name, family, format, and the digests of its layers in their order."""
    about: dict[str, Any] = {"architecture": "transformer", "format": "safetensors"}
    if shape.quantization:
        about["quantization"] = shape.quantization
    layers = [f"sha256:{file.digest}" for _, file in sorted(files.items())]
    descriptor = {"name": name, "family": shape.family}
    return canonical.dumps(
        {"descriptor": descriptor, "config": about, "modelfs": {"type": "layers", "diffIds": layers}}
    )


def read(data: bytes, *, where: str) -> Artifact:
    """The artifact whose manifest `data` is.

    Raises:
        UsageError: it is something else than a model, or one that is packed in archives.
        IntegrityError: it is malformed, or names files that would not stay in a folder of their own.
    """
    value = canonical.loads(data, where=where)
    if not isinstance(value, dict):
        raise _malformed("it is no object", where)
    _demand_model(value, where)
    layers, annotations = value.get("layers"), value.get("annotations") or {}
    if not isinstance(layers, list) or not isinstance(annotations, dict):
        raise _malformed("its layers or annotations are of another kind", where)
    files: dict[str, File] = {}
    for number, layer in enumerate(layers):
        if not isinstance(layer, dict):
            raise _malformed(f"layer {number} is no object", where)
        name = _name(layer, number, where)
        if name in files:
            raise _malformed(f"two layers are called {name!r}", where)
        if not _RAW.fullmatch(str(layer.get("mediaType"))):
            raise UsageError(
                f"the layer {name} is no plain file: {layer.get('mediaType')!r}",
                where=where,
                remedy="have it packed with one uncompressed file a layer (the media types that end with .raw)",
            )
        files[name] = _file(layer, name, where)
    for name in files:
        if inside := next((each for each in files if each.startswith(f"{name}/")), None):
            raise _malformed(f"{name!r} is a file and the folder of {inside!r}", where)
    candidate = annotations.get(_OURS)
    return Artifact(files, _file(value.get("config"), "config", where), str(candidate) if candidate else None)


def _descriptor(kind: str, file: File) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{file.digest}", "size": file.size}


def _kind(name: str) -> str:
    """Which of ModelPack's kinds of layers a file is: weights, their configuration, data, or documentation."""
    if name.endswith(".safetensors"):
        return "weight"
    if name.startswith(f"{RECORDS}/blobs/"):
        return "dataset"
    if name.startswith(f"{RECORDS}/") or name.upper().startswith(("README", "LICEN", "NOTICE", "COPYING", "USE")):
        return "doc"
    return "weight.config"


def _demand_model(value: dict[str, Any], where: str) -> None:
    """
    Raises:
        UsageError: the manifest is not a model's.
    """
    kind = value.get("mediaType", MANIFEST)
    settings = value.get("config")
    of = settings.get("mediaType") if isinstance(settings, dict) else None
    artifact = value.get("artifactType") or (ARTIFACT if of == _CONFIG else of)
    if kind != MANIFEST or artifact != ARTIFACT:
        raise UsageError(
            f"this is no model but {str(artifact if kind == MANIFEST else kind)!r}",
            where=where,
            remedy=f"name an artifact of the type {ARTIFACT}: registry push makes one",
        )


def _name(layer: dict[str, Any], number: int, where: str) -> str:
    annotations = layer.get("annotations")
    annotations = annotations if isinstance(annotations, dict) else {}
    names = {annotations[key] for key in (_TITLE, _PATH) if isinstance(annotations.get(key), str)}
    if len(names) != 1:
        raise _malformed(f"layer {number} has {'two names' if names else 'no name'}", where)
    (name,) = names
    parts = name.split("/")
    if not all(_PLAIN.fullmatch(part) for part in parts) or not {".", ".."}.isdisjoint(parts):
        raise _malformed(f"a layer is called {name!r}, which would not stay in the model's folder", where)
    return str(name)


def _file(descriptor: Any, name: str, where: str) -> File:
    found = descriptor if isinstance(descriptor, dict) else {}
    match, size = _DIGEST.fullmatch(str(found.get("digest"))), found.get("size")
    if match is None or type(size) is not int or size < 0:
        raise _malformed(f"{name} has no SHA-256 or no size", where)
    return File(digest=match[1], size=size)


def _malformed(what: str, where: str) -> IntegrityError:
    return IntegrityError(
        f"the manifest of this artifact cannot be trusted: {what}", where=where, remedy="have it pushed again"
    )
