"""Small tensors on their way to a GPU, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

# Devices that read pinned memory by themselves while the host goes on.
PINNED = {"cuda"}


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A CPU tensor on `device`, in `dtype` (None: its own). Any shape and dtype; the values of `x.to(device, dtype)`.

    A GPU is not waited for. A copy from ordinary memory would be: the driver lets all that was launched end first. So
    would one that changes the type, which is made in ordinary memory.
    """
    x = x if dtype is None else x.to(dtype)
    if device.type not in PINNED or x.device.type != "cpu":
        return x.to(device)
    return x.contiguous().pin_memory().to(device, non_blocking=True)
