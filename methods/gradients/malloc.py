"""The C library's allocator on a CPU: what it keeps between steps, and what it gives back."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# glibc's mallopt: parameters, and the values it reaches by itself once large blocks were freed.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


_USUAL = {_TRIM_THRESHOLD: 64 * 2**20, _MMAP_MAX: 65536}


_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


_lock = threading.Lock()


_keepers = 0


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Inside, memory freed on the CPU stays with the process (glibc; nothing happens elsewhere, or for a GPU).

    Activations come and go with every step. The system would take the freed pages back and clear them again for the
    next step, which costs a fifth of a step's time. Afterwards it gets what is free. May be nested, in any thread.
    """
    global _keepers
    library = _glibc() if device.type == "cpu" else None
    if library is None:
        yield
        return
    with _lock:
        _keepers += 1
        if _keepers == 1:
            for parameter, value in _KEEPING.items():
                library.mallopt(parameter, value)
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if _keepers == 0:
                for parameter, value in _USUAL.items():
                    library.mallopt(parameter, value)
                return_free_memory()


def return_free_memory() -> None:
    """Give the memory that was freed on the CPU back to the system, where the C library can (glibc).

    It keeps freed blocks of some megabytes for itself, and activations of many sizes leave gaps that no other fits in.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
