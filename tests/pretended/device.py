"""A pretended accelerator, for machines without one: after `load()` torch has a device named "pretended".

Its memory is the computer's and its kernels are the CPU's, but torch holds it for another device: a tensor left on the
CPU, a missing `.to(device)` or a mask on the wrong side fails as on a GPU. What is held on it is counted, and so are
the places where the host of a GPU would wait for it (`waits`). Under deterministic algorithms it refuses what CUDA
refuses. It tells nothing of speed, half precision or streams. A process that has loaded it keeps it, so tests do so in
processes of their own. Compiled once (a minute or two) for each torch, and kept in the user's cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "pretended"
SOURCE = Path(__file__).with_name("device.cpp")
PACK = Path(__file__).resolve().parents[2]


def compiler() -> str | None:
    """The C++ compiler, None where there is none."""
    return next(filter(None, map(shutil.which, ("g++", "clang++"))), None) if sys.platform == "linux" else None


def build() -> Path:
    """The compiled device for this torch. Raises `CalledProcessError` where it cannot be compiled."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "antipure-tests"
    built = cache / f"pretended-{key}.so"
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        folders = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        flags = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", abi]
        command = [str(compiler()), *flags, *folders, str(SOURCE), "-o", str(part), "-lc10", "-ltorch", "-ltorch_cpu"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        part.rename(built)
    return built


def load() -> ctypes.CDLL:
    """Give torch the device. What comes back counts its bytes: `pretended_held`, and `pretended_most` of late."""
    import torch

    torch.utils.rename_privateuse1_backend(NAME)
    path = str(build())
    torch.ops.load_library(path)
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.current_device, module.device_count = lambda: 0, lambda: 1
    module.manual_seed_all = lambda seed: None
    module._is_in_bad_fork, module._lazy_init = lambda: False, lambda: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    torch._register_device_module(NAME, module)
    library = ctypes.CDLL(path)
    library.pretended_held.restype = library.pretended_most.restype = ctypes.c_size_t
    return library


@contextmanager
def waits() -> Iterator[list[str]]:
    """Inside, on a `load`ed device, where the host of a GPU would wait: "why, file:line" of this pack's code each time.

    That is where a value is looked at, where data goes to the CPU, where it comes from memory that is not pinned (or in
    another type, or not contiguous) and where what comes out has a size that only the device knows.
    """
    library, found = load_library(), []

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p)
    def told(why: bytes) -> None:
        frame, place = sys._getframe(), "torch"
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path != Path(__file__) and PACK in path.resolve().parents:
                place = f"{path.resolve().relative_to(PACK)}:{frame.f_lineno}"
                break
            frame = frame.f_back
        found.append(f"{why.decode()}, {place}")

    library.pretended_tell_waits(told)
    try:
        yield found
    finally:
        library.pretended_tell_waits(None)


def load_library() -> ctypes.CDLL:
    """The compiled device, once `load` has given it to torch."""
    return ctypes.CDLL(str(build()))
