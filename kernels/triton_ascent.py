"""`ascent` in Triton."""

# Annotations stay objects: as text, Triton 3.0's interpreter does not see which parameters are constants.
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _ascend(values, direction, lower, upper, size, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(values + index, mask=inside)
    towards = tl.load(direction + index, mask=inside)
    step = tl.where(towards > 0, size, 0.0) - tl.where(towards < 0, size, 0.0)
    moved = (value + step).to(value.dtype)
    moved = tl.maximum(moved, tl.load(lower + index, mask=inside))
    moved = tl.minimum(moved, tl.load(upper + index, mask=inside))
    tl.store(values + index, moved, mask=inside)


def ascend(values: Tensor, direction: Tensor, size: float, lower: Tensor, upper: Tensor) -> Tensor:
    """See `ascent.ascend`."""
    count = values.numel()
    # Written in place, so a copy of values that are not contiguous must go back.
    flat = values.contiguous()
    bounds = lower.contiguous(), upper.contiguous()
    _ascend[(triton.cdiv(count, BLOCK),)](flat, direction.contiguous(), *bounds, float(size), count, BLOCK=BLOCK)
    return values if flat is values else values.copy_(flat)
