"""Shared pictures and a tiny, fast denoiser with random but fixed weights."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.diffusion.denoiser import Denoiser
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.files import SAFE_TORCH
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "bundled"

torch.backends.cudnn.allow_tf32 = False  # where there is a GPU, equal means equal within float32's rounding
torch.set_num_threads(1)  # the networks here are tiny: more threads only wait for each other


OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH  # tests change the version


class RootIsNoPackage:
    """The repository's root holds an `__init__.py` for ComfyUI; pytest would import it under the folder's name."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    # Not as a hook of this conftest: those are not asked about folders above their own.
    config.pluginmanager.register(RootIsNoPackage(), "root-is-no-package")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """On a torch that is given no pickle (`files.SAFE_TORCH`), tests that were refused one are skipped, saying so."""
    report = yield
    if OLD_TORCH and report.failed and "(CVE-2025-32434)" in report.longreprtext:
        report.outcome = "skipped"
        report.longrepr = (
            str(item.path),
            item.location[1],
            f"Skipped: torch {torch.__version__} reads no pickles here",
        )
    return report


def read_picture(path: Path) -> torch.Tensor:
    """1×3×H×W in 0..1."""
    array = np.asarray(Image.open(path).convert("RGB"))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def face() -> torch.Tensor:
    """The held-out photo, 128×128 face crop: 1×3×128×128 in 0..1."""
    return read_picture(SAMPLES / "astronaut_face.png")


def make_tiny_denoiser(*, tile: int | None = 16, out_channels: int = 3, patch: int = 1, seed: int = 0) -> PixelDenoiser:
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=3 * patch**2,
        out_channels=out_channels * patch**2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return PixelDenoiser(unet, abar, tile=tile, patch=patch)


@pytest.fixture(scope="session")
def tiny() -> PixelDenoiser:
    """Random 16-px pixel denoiser, a forward takes about a millisecond."""
    return make_tiny_denoiser()


@pytest.fixture(scope="session")
def make_tiny():
    """`make_tiny_denoiser`, for tests that need their own one: other tile, patch, channels, memory bound."""
    return make_tiny_denoiser


class AcceleratorError(RuntimeError):
    """torch.AcceleratorError as drivers raise it; older versions of torch have none."""

    error_code = 2


def _full(error: Exception):
    def raise_it():
        raise error

    return raise_it


# Every way in which memory runs out. The allocators are the real ones.
NO_ROOM = {
    "GPU": _full(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    "driver": _full(AcceleratorError("CUDA error: out of memory")),
    "older driver": _full(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere")),
    "CPU": lambda: torch.empty(2**50),
    "Python": lambda: bytearray(2**62),
    "numpy": lambda: np.empty(2**56),
}


@pytest.fixture(params=NO_ROOM)
def no_room(request):
    """A function that runs out of memory; its attribute `gpu` says whether of a GPU's."""

    def fail(*_, **__):
        return NO_ROOM[request.param]()

    fail.gpu = request.param in ("GPU", "driver", "older driver")
    return fail


class Spy(Denoiser):
    """Passes everything on to another denoiser and notes the shape and timesteps of every forward."""

    def __init__(self, inner: Denoiser):
        self.inner = inner
        self.alphas_cumprod, self.tile, self.multiple = inner.alphas_cumprod, inner.tile, inner.multiple
        self.clip_x0, self.memory_bytes = inner.clip_x0, inner.memory_bytes
        self.shapes: list[tuple[int, ...]] = []
        self.timesteps_seen: list[list[int]] = []

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.inner.encode(pixels)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(latent)

    def predict(self, x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.shapes.append(tuple(x_t.shape))
        self.timesteps_seen.append(t.tolist())
        return self.inner.predict(x_t, t)

    def bytes_per_pixel(self) -> float:
        return self.inner.bytes_per_pixel()


@pytest.fixture
def spy_on():
    """`Spy`, for tests that need several."""
    return Spy


@pytest.fixture
def spy(tiny) -> Spy:
    """The tiny denoiser, with a record of its forwards."""
    return Spy(tiny)


@pytest.fixture
def tool(monkeypatch):
    """Import a module of tools/ by name: tool("train_denoiser")."""
    package = types.ModuleType("tools")
    package.__path__ = [str(ROOT / "tools")]
    monkeypatch.setitem(sys.modules, "tools", package)
    for path in (ROOT / "tools").glob("*.py"):
        monkeypatch.delitem(sys.modules, f"tools.{path.stem}", raising=False)
    return lambda name: importlib.import_module(f"tools.{name}")


@pytest.fixture(scope="session")
def pretended() -> types.ModuleType:
    """tests/pretended/device.py, for processes that run on the pretended device; skips where nothing compiles it."""
    spec = importlib.util.spec_from_file_location("pretended_device", ROOT / "tests" / "pretended" / "device.py")
    device = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(device)
    if device.compiler() is None:
        pytest.skip("no C++ compiler for the pretended device")
    return device
