"""Which way a primitive runs: Triton on a GPU that can, plain torch everywhere else.

Every primitive is a plain function over `run`, which takes the torch reference beside the arguments and looks for a
function of the same name in `triton_<module>.py`. Triton is never needed: without it, without a GPU, for float64 and
where autograd must see through a function, the reference runs. `ANTIPURE_TRITON=0` turns Triton off;
`ANTIPURE_TRITON=1` together with Triton's own `TRITON_INTERPRET=1` runs its kernels on the CPU, as the tests do.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Result = TypeVar("Result")

OLDEST = (7, 5)  # compute capability: what today's Triton still compiles for
# Half precision is read and written as it is; sums are float32. float64 stays with torch, in full precision.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_failed: set[str] = set()


@functools.lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton's kernels are to run on the CPU, in its interpreter."""
    return os.environ.get("ANTIPURE_TRITON") == "1" and os.environ.get("TRITON_INTERPRET") == "1"


def capable(device: torch.device) -> bool:
    """Whether Triton is installed, not turned off, and made for this device."""
    if os.environ.get("ANTIPURE_TRITON") == "0" or not _installed():
        return False
    if device.type != "cuda":
        return interpreting()
    # AMD's cards call themselves cuda too; Triton's support for them does not follow these numbers.
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= OLDEST


def _fits(x: Tensor) -> bool:
    # Offsets inside the kernels are 32-bit.
    return x.dtype in DTYPES and 0 < x.numel() < 2**31 and not (torch.is_grad_enabled() and x.requires_grad)


def run(kernel: str, reference: Callable[..., Result], *args: object) -> Result:
    """`reference(*args)`, or Triton's version of it where that can run.

    kernel: "module.function", found as `function` in `triton_<module>.py`, called with the same arguments. All tensors
    among the arguments are on one device. A kernel that fails (to compile, as a rule) is reported once and not tried
    again in this process; running out of memory is no such failure and passes through.
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    device = tensors[0].device
    if kernel in _failed or not capable(device) or not all(map(_fits, tensors)):
        return reference(*args)
    module, function = kernel.split(".")
    try:
        fast = getattr(importlib.import_module(f".triton_{module}", __package__), function)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return fast(*args)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        # torch.AcceleratorError's number, and what Triton and older torch say where the driver found no room.
        if getattr(error, "error_code", None) == 2 or "out of memory" in str(error):
            raise
        _failed.add(kernel)
        log.warning(
            "Triton cannot run %s here (%s: %s); torch does it from now on.", kernel, type(error).__name__, error
        )
    return reference(*args)
