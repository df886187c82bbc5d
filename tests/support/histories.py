"""Chains of manifests as a recipe would make them, without a registry: for what is computed from manifests alone."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any

from registry.controls import Side
from registry.history import Chain
from registry.manifests import File, Inputs, Manifest, MixUse, Shape
from registry.recipes import experts_kept

EXPERTS, TOP_K = 256, 8
TEMPLATE = "chat_template.jinja"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def base(name: str = "qwen", **settings: Any) -> Chain:
    """A model that was added; `settings` such as source and revision."""
    inputs = Inputs(op="add", parent=None, settings={"files": digest(name), **settings}, code="add-1")
    return _on((), inputs, EXPERTS, {TEMPLATE: File(digest=digest(f"{name}'s own"), size=1)})


def prune(chain: Chain, compression: str, mix: str | None, *, code: str = "prune-1", **settings: Any) -> Chain:
    """`chain`, pruned so deep on the mix of this name (None: a criterion that looks at no data)."""
    parent = chain[0][1]
    given = {"criterion": "reap", "renormalize_router": None, "sequence_length": 2048}
    inputs = Inputs(
        op="prune",
        parent=chain[0][0],
        settings={"compression": compression, **given, **settings},
        mix=MixUse(name=mix, rows=digest(mix), datasets=()) if mix else None,
        code=code,
    )
    return _on(chain, inputs, experts_kept(parent.shape.experts, Decimal(compression), top_k=TOP_K))


def train(chain: Chain, mix: str, *, reference: Any = "held-out", **settings: Any) -> Chain:
    inputs = Inputs(
        op="train",
        parent=chain[0][0],
        settings={
            "experts": "nf4",
            "lora": {"rank": 16, "alpha": 32, "dropout": "0", "targets": None},
            "reference": {"name": reference, "rows": digest(reference)} if isinstance(reference, str) else reference,
            "learning_rate": "0.0001",
        }
        | settings,
        mix=MixUse(name=mix, rows=digest(mix), datasets=()),
        seed=0,
        code="train-1",
    )
    return _on(chain, inputs, chain[0][1].shape.experts)


def quantize(chain: Chain) -> Chain:
    inputs = Inputs(op="quantize", parent=chain[0][0], settings={"format": "fp8-block"}, code="quantize-1")
    return _on(chain, inputs, chain[0][1].shape.experts)


def derive(chain: Chain, file: str, content: str) -> Chain:
    settings = {"replaced": {file: digest(content)}}
    inputs = Inputs(op="derive", parent=chain[0][0], settings=settings, code="derive-1")
    changed = {file: File(digest=digest(content), size=1)}
    return _on(chain, inputs, chain[0][1].shape.experts, chain[0][1].files | changed)


def side(name: str, chain: Chain) -> Side:
    return Side(name, chain)


def _on(chain: Chain, inputs: Inputs, experts: int, files: dict[str, File] | None = None) -> Chain:
    manifest = Manifest(
        format=1,
        inputs=inputs,
        shape=Shape(
            family="qwen3_5_moe", layers=40, experts=experts, top_k=TOP_K, quantization=None, tensor_bytes=experts
        ),
        files=files or chain[0][1].files,
    )
    return ((manifest.identity(), manifest), *chain)
