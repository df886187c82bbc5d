"""Quantise a candidate: every expert and every linear projection to block FP8, all else bit by bit as it was.

Which tensors these are is the family's to say, and every tensor of the source is accounted for: none is skipped because
a tool does not know its form.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates.errors import UsageError
from registry import output
from registry.checkpoint import read_config
from registry.completeness import FP8_BLOCK, SCALE_SUFFIX, quantized, scale_shape
from registry.families import family_of
from registry.manifests import Inputs
from registry.progress import progress
from registry.tensors import read_header

if TYPE_CHECKING:
    from stages.common.checkpoint import Checkpoint
    from stages.common.rewriting import Change
    from stages.common.stage import Job

CODE = "quantize-1"
"""Changes whenever the same source would give other bytes."""

BLOCK = (128, 128)


def quantize(job: Job) -> None:
    """Makes the candidate `job.makes` from `job.source`, or finds it made.

    Raises:
        UsageError: the source is quantised already, or a dimension does not divide by 128; nothing is written.
        IntegrityError: the source is damaged, or a weight holds NaN or infinity.
    """
    stated = job.source.manifest.shape.quantization
    if stated is not None:
        raise UsageError(
            f"{job.source.name} is quantised already ({stated})",
            where=job.where,
            remedy="start from a candidate in BF16",
        )
    inputs = Inputs(
        op="quantize",
        parent=job.source.digest,
        settings={"format": job.settings.format},
        mix=None,
        seed=None,
        code=CODE,
    )
    if job.made(inputs):
        return
    _refuse_uneven(job.source.folder)
    with job.store.step(inputs.identity()) as folder:
        write_fp8(job.source.folder, folder / "model", what=f"quantize {job.makes}")
        candidate = job.store.commit(job.makes, inputs, folder / "model", replace=job.replace)
        job.store.discard(inputs.identity())
    before, after = job.source.manifest.size, candidate.manifest.size
    output.text(f"{job.makes}: {FP8_BLOCK}, {output.size(after)} (was {output.size(before)})")


def write_fp8(source_folder: Path, target: Path, *, what: str) -> None:
    """Writes the checkpoint of `source_folder` in block FP8 to `target`, with progress called `what`.

    Raises:
        IntegrityError: the source is damaged, or a weight holds NaN or infinity.
    """
    import torch

    from stages.common.checkpoint import Checkpoint
    from stages.common.rewriting import rewrite

    torch.set_num_threads(1)  # the writer has threads of its own
    source = Checkpoint(source_folder)
    changes = [_change(source, name) for name in source.tensors]
    with progress(what, total=source.size, unit="B") as bar:
        rewrite(
            source, target, changes, config={"quantization_config": quantization_config(source)}, advance=bar.advance
        )


def quantization_config(source: Checkpoint) -> dict[str, Any]:
    """What config.json says of the quantised checkpoint. Modules are named exactly, since loaders compare names so."""
    kept = [
        name.removesuffix(".weight")
        for name, tensor in source.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and not quantized(source.family, name)
    ]
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK),
        "modules_to_not_convert": sorted(kept),
    }


def _refuse_uneven(folder: Path) -> None:
    """vLLM refuses experts whose dimensions do not divide by the block, and merges projections block by block;
    transformers derives the block from the shapes. So both want whole blocks."""
    family = family_of(read_config(folder))
    for shard in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_header(shard).items():
            whole = len(tensor.shape) == 2 and not any(
                size % side for size, side in zip(tensor.shape, BLOCK, strict=True)
            )
            if quantized(family, name) and not whole:
                raise UsageError(
                    f"block FP8 needs dimensions that divide by {BLOCK[0]}; {name} is {_times(tensor.shape)}",
                    where=str(shard),
                    remedy="serve this model in BF16",
                )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _change(source: Checkpoint, name: str) -> Change:
    from stages.common.rewriting import Change, Product, kept
    from stages.quantize.fp8 import quantize_block

    if not quantized(source.family, name):
        return kept(source, name)
    shape = source.tensors[name].shape
    products = (
        Product(name, "F8_E4M3", shape),
        Product(name + SCALE_SUFFIX, "F32", scale_shape(shape, BLOCK)),
    )
    return Change(name, products, lambda weight: quantize_block(weight, name=name))
