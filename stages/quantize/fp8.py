"""Block FP8: every 128 x 128 block of a weight has one scale, and its numbers are E4M3.

    scale_inv = amax(block) / 448        448 is the largest number of E4M3
    weight    ≈ fp8 * scale_inv

The format of DeepSeek-V3 (https://arxiv.org/abs/2412.19437, section 3.3), which vLLM and transformers load as
`quant_method: fp8` with `weight_block_size`. The scales of `x.weight` are `x.weight_scale_inv`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gates.errors import IntegrityError

BLOCK = 128
LARGEST = 448.0

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_BITS = {2: (torch.int16, 0x7FFF), 4: (torch.int32, 0x7FFFFFFF)}
"""The whole number as wide as a float, and all of it but the sign. Without its sign, a larger float is a larger one."""


@dataclass(slots=True)
class Noise:
    """What a cast cost, summed over the blocks of a tensor: Σ(w - ŵ)² and Σw²."""

    lost: float = 0.0
    power: float = 0.0

    @property
    def relative(self) -> float:
        """‖w - ŵ‖ / ‖w‖; 0 for a tensor of zeros."""
        return math.sqrt(self.lost / self.power) if self.power else 0.0


def quantize_block(
    weight: torch.Tensor, *, name: str, noise: Noise | None = None, every: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight in E4M3 and its scales, on the device that the weight is on.

    Args:
        weight: [out, in], BF16, F16 or F32. Blocks at the edges may be partial.
        name: the tensor's name, for messages.
        noise: what the cast costs is added to it.
        every: measure it on the first of so many rows of blocks. (Measuring takes longer than casting.)

    Returns:
        float8_e4m3fn [out, in], and float32 [⌈out/128⌉, ⌈in/128⌉], each scale positive and finite.

    Raises:
        IntegrityError: the weight holds NaN or infinity.
    """
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    quantized = torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty((-(-rows // BLOCK), blocks), dtype=torch.float32, device=weight.device)
    # one row of blocks at a time: it stays in the cache, where the whole matrix in float32 would not
    for number, begin in enumerate(range(0, rows, BLOCK)):
        band = weight[begin : begin + BLOCK]
        largest = _largest(band, blocks)
        if not largest.isfinite().all():
            raise IntegrityError("the weight holds NaN or infinity", where=f"tensor {name}")
        # a block of zeros divides by 1, not by 0; and a subnormal scale would be too coarse, so that numbers overflow
        scale = torch.where(largest == 0, 1.0, (largest / LARGEST).clamp(min=_SMALLEST_SCALE))
        scales[number] = scale
        spread = scale.repeat_interleave(BLOCK)[:columns]
        scaled = band.float() / spread
        codes = quantized[begin : begin + BLOCK]
        codes.copy_(scaled)
        if noise is not None and number % every == 0:
            _add_noise(noise, scaled, codes, spread)
    return quantized, scales


def dequantize_block(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 matrix that a quantised one stands for."""
    rows, columns = weight.shape
    spread = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return weight.float() * spread


def _largest(band: torch.Tensor, blocks: int) -> torch.Tensor:
    """The largest magnitude in each block of a row of them; NaN or infinity, if one is there."""
    whole, magnitude = _BITS[band.element_size()]
    columns = band.view(whole).bitwise_and(magnitude).amax(0)
    if len(columns) % BLOCK:
        columns = torch.nn.functional.pad(columns, (0, blocks * BLOCK - len(columns)))
    return columns.view(blocks, BLOCK).amax(1).view(band.dtype).float()


def _add_noise(noise: Noise, scaled: torch.Tensor, codes: torch.Tensor, spread: torch.Tensor) -> None:
    """Measured from the codes themselves, in units of the largest scale, whose square float32 could not hold."""
    unit = spread.max()
    share = spread / unit
    lost = scaled.sub(_decoded(codes), alpha=_E4M3_IN_F16).mul_(share).flatten()
    power = scaled.mul_(share).flatten()
    square = float(unit) ** 2
    noise.lost += float(torch.dot(lost, lost)) * square
    noise.power += float(torch.dot(power, power)) * square


_E4M3_IN_F16 = 256.0


def _decoded(codes: torch.Tensor) -> torch.Tensor:
    """The numbers that E4M3 codes stand for, over 256, in float32; several times faster than torch's own conversion.

    The bits of E4M3 (bias 7), moved to those of F16 (bias 15), are the same number times 2⁻⁸, subnormal ones too.
    """
    bits = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return bits.view(torch.float16).float()
