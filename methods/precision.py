"""The precision a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """No autocast inside a block that may have been reached under one; nothing where none is on."""
    try:
        on = torch.is_autocast_enabled(device.type)
    except RuntimeError:  # a device that torch knows no autocast for
        on = False
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to `dtype` on that device; nothing for float32: DirectML has no autocast at all."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
