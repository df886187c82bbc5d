"""Block FP8: every 128 x 128 block of a weight has one scale, and its numbers are E4M3.

    scale_inv = amax(block) / 448        448 is the largest number of E4M3
    weight    ≈ fp8 * scale_inv

The format of DeepSeek-V3 (https://arxiv.org/abs/2412.19437, section 3.3), which vLLM and transformers load as
`quant_method: fp8` with `weight_block_size`. The scales of `x.weight` are `x.weight_scale_inv`.
"""

from __future__ import annotations

import torch

from gates.errors import IntegrityError

BLOCK = 128
LARGEST = 448.0

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def quantize_block(weight: torch.Tensor, *, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight in E4M3 and its scales.

    Args:
        weight: [out, in], of any floating dtype. Blocks at the edges may be partial.
        name: the tensor's name, for messages.

    Returns:
        float8_e4m3fn [out, in], and float32 [⌈out/128⌉, ⌈in/128⌉], each scale positive and finite.

    Raises:
        IntegrityError: the weight holds NaN or infinity.
    """
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    quantized = torch.empty((rows, columns), dtype=torch.float8_e4m3fn)
    scales = torch.empty((-(-rows // BLOCK), blocks), dtype=torch.float32)
    # one row of blocks at a time: it stays in the cache, where the whole matrix in float32 would not
    for number, begin in enumerate(range(0, rows, BLOCK)):
        band = weight[begin : begin + BLOCK].float()
        if columns % BLOCK:
            band = torch.nn.functional.pad(band, (0, blocks * BLOCK - columns))
        band = band.view(-1, blocks, BLOCK)
        largest = band.abs().amax(dim=(0, 2))
        if not largest.isfinite().all():
            raise IntegrityError("the weight holds NaN or infinity", where=f"tensor {name}")
        # a block of zeros divides by 1, not by 0; and a subnormal scale would be too coarse, so that numbers overflow
        scale = torch.where(largest == 0, 1.0, (largest / LARGEST).clamp(min=_SMALLEST_SCALE))
        scales[number] = scale
        cast = (band / scale[None, :, None]).to(torch.float8_e4m3fn).view(-1, blocks * BLOCK)
        quantized[begin : begin + BLOCK] = cast[:, :columns]
    return quantized, scales


def dequantize_block(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 matrix that a quantised one stands for."""
    rows, columns = weight.shape
    spread = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return weight.float() * spread
