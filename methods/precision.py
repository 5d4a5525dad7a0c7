"""The precision a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to `dtype` on that device; nothing for float32: DirectML has no autocast at all."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
