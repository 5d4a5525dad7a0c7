"""What the trainings of small autoencoders and of the demo latent model share: clocks, averages, losses, files."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


class Clock:
    """Minutes of a stage, those of earlier sittings included; `share` is what drives schedules."""

    def __init__(self, minutes: float, spent: float = 0.0):
        self.minutes, self.before, self.start = minutes, spent, time.monotonic()

    @property
    def spent(self) -> float:
        return self.before + (time.monotonic() - self.start) / 60

    @property
    def share(self) -> float:
        return min(1.0, self.spent / max(self.minutes, 1e-9))

    def rate(self, peak: float) -> float:
        """Linear over the first 3 %, then a cosine down to a hundredth."""
        return peak * min(1.0, self.share / 0.03 + 0.02) * (0.505 + 0.495 * math.cos(math.pi * self.share))


class Average:
    """Exponential moving average of a network's weights; buffers are copied."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        own, new = [], []
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                own.append(self.state[key])
                new.append(value)
            else:
                self.state[key].copy_(value)
        torch._foreach_lerp_(own, new, 1 - keep)


def save_atomically(value: object, path: Path) -> None:
    torch.save(value, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def pyramid_loss(ours: Tensor, truth: Tensor) -> Tensor:
    """L1 on pixels and on three levels of a Laplacian pyramid: contrasts count at every size."""
    loss = (ours - truth).abs().mean()
    difference = ours - truth
    for _ in range(3):
        low = F.avg_pool2d(difference, 2)
        loss = loss + (difference - F.interpolate(low, scale_factor=2.0)).abs().mean()
        difference = low
    return loss + difference.abs().mean()


def colour_loss(ours: Tensor, truth: Tensor) -> Tensor:
    """L1 on red against green and on yellow against blue, over 2 and 8 pixels: an L1 over pixels alone is content with
    the right greys, because most of what differs between pictures is brightness."""
    difference = ours - truth
    red, green, blue = difference.unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)
    fine = F.avg_pool2d(opponents, 2)
    return fine.abs().mean() + 3 * F.avg_pool2d(fine, 4).abs().mean()


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bf16 multiplications are built in: CUDA, and CPUs with AMX or AVX512-BF16 (4 times as fast there)."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cuda" or any(getattr(torch.cpu, name, bool)() for name in names)


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device))


def read_autoencoder(folder: Path, autoencoder: nn.Module) -> None:
    """Weights of the autoencoder.safetensors that a training left into the network."""
    state = {k: v.float() for k, v in load_file(folder / "autoencoder.safetensors").items() if k.startswith("taesd")}
    autoencoder.load_state_dict(state, strict=False)


def read_model(folder: Path, model: nn.Module, conditions: nn.Module) -> bool:
    """Weights of the other files of a training (`train_latent_model.write_files`); False where there are none."""
    shards = [load_file(path) for path in sorted(folder.glob("model-*.safetensors"))]
    if shards:
        model.load_state_dict({k: v.float() for shard in shards for k, v in shard.items()})
        tables = load_file(folder / "conditions.safetensors")
        conditions.load_state_dict({k: v.float() for k, v in tables.items()})
    return bool(shards)


def random_crops(pictures: Tensor, side: int) -> Tensor:
    """The same window of side×side out of all pictures of a batch, from a multiple of 8."""
    top, left = (int(torch.randint((n - side) // 8 + 1, ())) * 8 for n in pictures.shape[2:])
    return pictures[..., top : top + side, left : left + side]
