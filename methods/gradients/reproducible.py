"""The same bytes from the same seed on a GPU: deterministic algorithms, and plans that do not follow free memory.

On a CPU both hold anyway. On a GPU the order of some sums changes from run to run (gradients of indexing and of
convolutions), and how many tiles run at once, which rounds differently, follows what other programs have left free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from ..errors import AntiPureError

_ACTIVE = ContextVar("antipure_reproducible", default=False)
_DETERMINISTIC: Any = torch.utils.deterministic  # a module of properties
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # torch refuses deterministic matrix products while cuBLAS may choose its workspace


def is_reproducible() -> bool:
    """Whether a `reproducible` block lasts: then nothing may depend on free memory."""
    return _ACTIVE.get()


@contextmanager
def reproducible(enabled: bool = True) -> Iterator[None]:
    """Same seed, same machine, same bytes inside the block, on a GPU, too; slower. Settings of torch return after it.

    Raises `AntiPureError` where a model needs an operation that torch cannot compute in the same order twice.
    """
    if not enabled:
        yield
        return
    token = _ACTIVE.set(True)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, fill = torch.backends.cudnn.benchmark, _DETERMINISTIC.fill_uninitialized_memory
    workspace = os.environ.get(_CUBLAS)
    try:
        os.environ.setdefault(_CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        _DETERMINISTIC.fill_uninitialized_memory = False
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise AntiPureError(
            f"This model cannot be run in the same order twice on this device ({str(error).splitlines()[0]}); switch "
            "'reproducible' off."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        _DETERMINISTIC.fill_uninitialized_memory = fill
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
        _ACTIVE.reset(token)
