"""`noising` in Triton."""

# Annotations stay objects: as text, Triton 3.0's interpreter does not see which parameters are constants.
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _combine(x0, eps, signal, spread, out, count, stride, BLOCK: tl.constexpr):
    # One axis: CUDA ends the others at 65,535.
    blocks = tl.cdiv(count, BLOCK)
    sample = tl.program_id(0) // blocks
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    index += sample * count
    a = tl.load(signal + sample * stride).to(tl.float32)
    b = tl.load(spread + sample * stride).to(tl.float32)
    mixed = a * tl.load(x0 + index, mask=inside) + b * tl.load(eps + index, mask=inside)
    tl.store(out + index, mixed, mask=inside)


def combine(x0: Tensor, eps: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """signal · x0 + spread · eps, see `noising.add_noise`; signal and spread N×1×1×1 or 1×1×1×1."""
    out = torch.empty_like(x0, memory_format=torch.contiguous_format)
    count = out[0].numel()
    stride = 1 if len(signal) > 1 else 0
    grid = (triton.cdiv(count, BLOCK) * len(x0),)
    _combine[grid](x0.contiguous(), eps.contiguous(), signal, spread, out, count, stride, BLOCK=BLOCK)
    return out
