"""What `registry plan` says of a checkpoint is what pruning and quantising it make, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.checkpoint import headers, inspect
from registry.families import architecture_of
from registry.plan import Model, Terms, of_config, of_tensors, weights
from stages.common.checkpoint import Checkpoint
from stages.prune.surgery import write_pruned
from stages.quantize import write_fp8
from tests.support import tiny
from tests.support.tiny_configs import CONFIGS, DIVISIBLE, MTP_KEYS


def model_of(folder: Path) -> Model:
    architecture = architecture_of(json.loads((folder / "config.json").read_bytes()))
    return of_tensors(architecture, headers(folder))


def predicted(model: Model, written: str, *, experts: int | None = None) -> int:
    return sum(weights(model, Terms(format=written, mtp=True), experts=experts).values())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_bytes_before_and_after_prune_and_quantise_are_predicted(tmp_path: Path, family: str, fused: bool):
    with_mtp = family in MTP_KEYS
    source = tiny.make(tmp_path / "source", family, fused=fused, mtp=with_mtp, **DIVISIBLE[family])
    whole = model_of(source)
    assert predicted(whole, "bf16") == inspect(source).tensor_bytes

    architecture = whole.architecture
    layers = [*architecture.expert_layers, *architecture.mtp_layers]
    keep = architecture.experts - architecture.groups
    write_pruned(Checkpoint(source), {layer: range(keep) for layer in layers}, tmp_path / "pruned")
    assert predicted(whole, "bf16", experts=keep) == inspect(tmp_path / "pruned").tensor_bytes

    write_fp8(tmp_path / "pruned", tmp_path / "fp8", what="quantize")
    assert predicted(whole, "fp8-block", experts=keep) == inspect(tmp_path / "fp8").tensor_bytes
    assert predicted(model_of(tmp_path / "fp8"), "fp8-block") == inspect(tmp_path / "fp8").tensor_bytes
    assert predicted(of_config(architecture), "fp8-block", experts=keep) == inspect(tmp_path / "fp8").tensor_bytes
