"""Running out of memory, on whatever device: how to tell, and the one sentence about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import AntiPureError

# What comes as a plain RuntimeError: of torch's allocators for CPUs and for Apple's GPUs, CUDA's libraries, Triton and
# DirectML.
_SAID_OF_CPUS = ("DefaultCPUAllocator", "can't allocate memory")
_SAID = (
    *_SAID_OF_CPUS,
    "MPS backend out of memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Triton Error [HIP]: out of memory",
    "not enough GPU video memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
)
_CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, and HIP's number for the same


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that a GPU's or the machine's own memory ran out."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    # torch.AcceleratorError (torch 2.8 on), raised where the driver, not torch's allocator, found no room.
    if getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY and isinstance(error, RuntimeError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def out_of_memory(error: BaseException, purpose: str, advice: str) -> AntiPureError:
    """The sentence: what there is not enough memory for, a GPU's or the machine's own, and what to do."""
    machines = isinstance(error, MemoryError) or any(said in str(error) for said in _SAID_OF_CPUS)
    return AntiPureError(f"{'There is' if machines else 'The GPU has'} not enough memory for {purpose}; {advice}.")


@contextmanager
def enough_memory(purpose: str, advice: str) -> Iterator[None]:
    """Running out of memory inside is raised as `AntiPureError`, see `out_of_memory`; all else passes through."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, purpose, advice) from error
