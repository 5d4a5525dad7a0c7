"""Checks of methods and nodes on the pretended device; test_pretended_device.py runs it in a process of its own.

Usage: python checks.py. The same work is done on the CPU and on the device, and prints one JSON object: by how much
they differ, in levels or relative, or what failed. On the device noise is drawn in threads.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

import device  # noqa: E402

COUNTERS = device.load()

import torch  # noqa: E402
from antipure.kernels.filters import bilateral, gaussian_blur, median  # noqa: E402
from antipure.methods import pictures, protections  # noqa: E402
from antipure.methods.attacks import pgd  # noqa: E402
from antipure.methods.attacks.ensemble import VaeTargets, combine  # noqa: E402
from antipure.methods.attacks.loss import FunctionLoss  # noqa: E402
from antipure.methods.attacks.settings import AttackSettings  # noqa: E402
from antipure.methods.diffusion.autoencoder import NetworkAutoencoder  # noqa: E402
from antipure.methods.diffusion.pixel import PixelDenoiser  # noqa: E402
from antipure.methods.errors import AntiPureError  # noqa: E402
from antipure.methods.generators.procedural_faces import draw_faces  # noqa: E402
from antipure.methods.generators.stargan import StarGAN, StarGANNetwork  # noqa: E402
from antipure.methods.gradients.differentiation import overflowed, segment  # noqa: E402
from antipure.methods.gradients.reproducible import reproducible  # noqa: E402
from antipure.methods.lora_patching.training import TrainingConfig, train_patch  # noqa: E402
from antipure.methods.purification.purify import purify  # noqa: E402
from antipure.methods.purification.random_cleaner import Jpeg  # noqa: E402
from antipure.nodes import NODE_CLASS_MAPPINGS as NODES  # noqa: E402
from antipure.nodes import host  # noqa: E402

DEVICE, CPU = torch.device(device.NAME, 0), torch.device("cpu")
PICTURE = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(0))
torch.set_num_threads(1)
warnings.simplefilter("ignore")
pictures._WORTH_THREADS = 1
LIKE_OTHERS = ("robust_fast", "fast")  # but for their numbers
LATENT = ("mist", "mist_semantic", "pid")  # these need a latent denoiser's own parts


def denoiser(channels: int = 3) -> PixelDenoiser:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return PixelDenoiser(unet, abar, tile=16)


class Vae(torch.nn.Module):
    multiple, channels = 2, 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.down, self.up = torch.nn.Conv2d(3, 4, 4, 2, 1), torch.nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.down(pixels).tanh(), None

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.up(latent)


def generator() -> StarGAN:
    torch.manual_seed(0)
    network = StarGANNetwork(conv_dim=4, n_labels=2, blocks=1)
    return StarGAN(network, {"dark": (1.0, 0.0), "light": (0.0, 1.0)}, size=32)


def protected(name: str, where: torch.device) -> torch.Tensor:
    pixels, small = denoiser().to(where), NetworkAutoencoder(Vae(), name="small").to(where)
    target = combine(pixels, VaeTargets((small,)), "mean")
    mask = torch.ones(1, 1, *PICTURE.shape[-2:], device=where)
    with reproducible(), target.session():
        settings = AttackSettings(8.0, 2, mask, 3)
        return protections.apply_protection(name, PICTURE.to(where), target, settings)


def purified(method: str, where: torch.device) -> torch.Tensor:
    model = denoiser().to(where)
    with reproducible(), model.session():
        return purify(method, PICTURE.to(where), model, timestep=4, iterations=2, seed=1)


def trained(where: torch.device) -> torch.Tensor:
    faces = draw_faces(range(3), side=32)
    config = TrainingConfig(mode="evaluation", rank=2, epochs=1, batch=2)
    model = generator()
    model.to(where)
    result = train_patch(model, faces, config)
    return torch.cat([t.flatten().float().cpu() for _, t in sorted(result.patch.tensors.items())])


def nodes_on(where: torch.device) -> torch.Tensor:
    """Load, protect, purify and measure, as the command line runs them."""
    host.device = lambda: where
    (model,) = NODES["AntiPureLoadDenoiser"]().load("bundled", "fp32")
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        made = NODES["AntiPureProtect"]().protect(image, model, "strong", 8.0, 1, 0, reproducible=True)[0]
        pure = NODES["AntiPureDiffusionPurify"]().purify(made, model, "gridpure", 2, 1, 0.1, 0)[0]
    assert model.device == where
    return torch.cat([made, pure])


def overflowing(where: torch.device) -> torch.Tensor:
    """PGD through a segment whose gradient leaves half precision's range: 600 · 300 > 65,504."""
    seen: list[bool] = []

    def noticed(noted: list[torch.Tensor]) -> bool:
        seen.append(overflowed(noted))
        return seen[-1]

    def steep(x: torch.Tensor) -> torch.Tensor:
        return ((x.half() * 600).sin() * 300).float()

    loss = FunctionLoss(lambda pixels, _: [segment(steep, pixels, keep=False).mean()])
    with patch.object(pgd, "overflowed", noticed):
        made = pgd.pgd(PICTURE.to(where), lambda clean: loss, AttackSettings(8.0, 3))
    # On a device it is found once, by a step, and then by the segments; on the CPU, which waits for nothing, by those.
    assert seen == ([False] if where == CPU else [True]) + [False] * (len(seen) - 1), seen
    return made


def levels(run, *arguments) -> dict:
    ours, theirs = run(*arguments, DEVICE), run(*arguments, CPU)
    apart = (ours.cpu() - theirs).abs() * 255
    acts = theirs.shape != PICTURE.shape or float((theirs - PICTURE).abs().max()) > 1 / 255
    return {"most": float(apart.max()), "acts": acts}


def mixed() -> dict:
    """Whether a tensor on the wrong side is found out."""
    try:
        torch.ones(2, device=DEVICE) + torch.ones(2)
    except RuntimeError:
        return {"most": 0.0, "acts": True}
    return {"most": 0.0, "acts": False}


def refused() -> dict:
    """Whether an operation that CUDA computes in no fixed order is found out."""
    try:
        with reproducible():
            torch.ones(3, 2, device=DEVICE).median(0)
    except AntiPureError as error:
        return {"most": 0.0, "acts": "switch 'reproducible' off" in str(error)}
    return {"most": 0.0, "acts": False}


def cleaned(name: str, where: torch.device) -> torch.Tensor:
    """The gradient through each of the cheap cleaners that `robust` draws, in a fixed order."""
    cleaner = {
        "bilateral": lambda x: bilateral(x, 0.1, 1.0), "median": lambda x: median(x, 3),
        "blur": lambda x: gaussian_blur(x, 0.8), "jpeg": Jpeg(75),
    }[name]  # fmt: skip
    leaf = PICTURE.clone().to(where).requires_grad_()
    with reproducible():
        out = cleaner(leaf)
        (out * torch.linspace(0, 1, out.numel()).view(out.shape).to(where)).sum().backward()
    return torch.cat([out.detach(), leaf.grad])


def checks():
    yield "a tensor left behind", mixed
    yield "an operation in no fixed order", refused
    for name in ("bilateral", "median", "blur", "jpeg"):
        yield f"cleaner {name}", lambda name=name: levels(cleaned, name)
    for name in protections.NAMES:
        if protections.needs_denoiser(name) and name not in LATENT:
            yield f"protect {name}", lambda name=name: levels(protected, name)
    for method in ("gridpure", "diffpure"):
        yield f"purify {method}", lambda method=method: levels(purified, method)
    yield "nodes", lambda: levels(nodes_on)
    yield "half precision overflows", lambda: levels(overflowing)
    yield "train a patch", lambda: relative(trained(DEVICE), trained(CPU))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> dict:
    return {"most": float((ours - theirs).abs().max() / theirs.abs().max()), "acts": float(theirs.std()) > 0}


if __name__ == "__main__":
    found = {}
    for name, check in checks():
        try:
            found[name] = check()
        except Exception:
            found[name] = {"failed": traceback.format_exc()[-1500:]}
    found["used"] = COUNTERS.pretended_most()
    print("RESULT " + json.dumps(found))
