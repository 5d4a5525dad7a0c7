"""The step of projected gradient ascent (Madry et al., ICLR 2018): sign step and projection in one pass."""

from __future__ import annotations

from torch import Tensor

from .dispatch import run


def ascend(values: Tensor, direction: Tensor, size: float, lower: Tensor, upper: Tensor) -> Tensor:
    """values + size · sign(direction), brought back between lower and upper: written into `values`, and returned.

    values, direction, lower, upper: alike in shape, dtype and device, any shape; lower <= upper. size in the units of
    values (8-bit levels for `attack.pgd`). The bounds hold the ball, the 8-bit range and the mask all together
    (`attack.Budget`), so that one pass does for all; where they are equal a value stays at them. Normalisation,
    momentum and preconditioning belong to the direction and stay with the caller.

    Both ways give the same bits: size · sign is exact, so that a fused multiply-add rounds as the two do.
    Raises `ValueError` for shapes that differ.
    """
    if not values.shape == direction.shape == lower.shape == upper.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (values, direction, lower, upper))
        raise ValueError(f"values, direction and bounds must have one shape, not {shapes}")
    return run("ascent.ascend", _ascend_torch, values, direction, size, lower, upper)


def _ascend_torch(values: Tensor, direction: Tensor, size: float, lower: Tensor, upper: Tensor) -> Tensor:
    return values.add_(direction.sign().mul_(size)).clamp_(lower, upper)
