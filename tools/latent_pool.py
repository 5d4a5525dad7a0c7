"""Labelled portraits for the training of the demo latent model: drawn ones, renewed, and painted ones."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tools import portrait_solids
from tools.portraits import SLOTS, draw_portraits

KNOWN, STRANGERS = 32, 4  # identities with a token of their own; tokens that mean "somebody", free for customization
HELD_OUT = 1_000_000  # identity seeds from here on are never drawn for training
SIZES = {"who": 1 + KNOWN + STRANGERS} | {name: len(values) for name, values in SLOTS.items()}
PAINTED = SLOTS["style"].index("painted")


class Pool:
    """uint8 pictures N×3×side×side and labels N×slots (column 0: who) on the device; `renew` exchanges some for new."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.device, self.side, self.count, self.seed, self.drawn = device, args.side, args.draw_batch, args.seed, 0
        self.trace = torch.compile(portrait_solids.distances) if args.compile and device.type == "cuda" else None
        self.cutouts = load_file(args.painted)["cutouts"].to(device) if args.painted else None
        self.recolour = args.drawn is not None
        if args.drawn is not None:
            self.pictures, self.labels = (part.to(device) for part in read_pool(args.drawn))
            print(f"{len(self.pictures)} portraits read", flush=True)
            return
        parts = [self.draw()]  # compiles: not counted
        clock = time.monotonic()
        while self.drawn < args.pool and (time.monotonic() - clock < 60 * args.pool_minutes):
            parts.append(self.draw())
        self.pictures, self.labels = (torch.cat(column) for column in zip(*parts, strict=True))
        print(f"{self.drawn} portraits drawn in {time.monotonic() - clock:.1f} s", flush=True)

    @torch.no_grad()
    def draw(self) -> tuple[Tensor, Tensor]:
        """The next portraits: one in six of a known identity, the others of anybody below `HELD_OUT`."""
        at = torch.arange(self.drawn, self.drawn + self.count)
        self.drawn += self.count
        who = torch.where(at % 6 == 0, (at // 6) % KNOWN, KNOWN + (at * 7_919 + self.seed) % (HELD_OUT - KNOWN))
        try:
            found = draw_portraits(who, at + self.seed, side=self.side, device=self.device, trace=self.trace)
        except Exception as error:  # the compiler is a convenience: go on without it
            if self.trace is None:
                raise
            print(f"drawing without the compiler: {error!r:.300}", flush=True)
            self.trace = None
            found = draw_portraits(who, at + self.seed, side=self.side, device=self.device)
        known = torch.where(who < KNOWN, who + 1, 0).to(self.device)[:, None]
        return (found.pictures * 255).round().byte(), torch.cat([known, found.labels], 1)

    def renew(self) -> None:
        """One batch of pictures gives way to new ones, the oldest first."""
        at = (self.drawn // self.count) % (len(self.pictures) // self.count) * self.count
        pictures, labels = self.draw()
        self.pictures[at : at + self.count], self.labels[at : at + self.count] = pictures, labels

    def painted(self, count: int) -> Tensor:
        """Painted portraits N×3×side×side in 0..1: cropped, mirrored, tinted, over blurred drawn backgrounds."""
        side = self.pictures.shape[-1]
        rgba = self.cutouts[torch.randint(len(self.cutouts), (count,), device=self.device)].float() / 255

        def draw(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, device=self.device)

        zoom, flip = draw(0.62, 0.95), torch.randint(2, (count,), device=self.device) * 2.0 - 1
        zero = torch.zeros_like(zoom)
        rows = [torch.stack([zoom * flip, zero, draw(-0.2, 0.2)], 1), torch.stack([zero, zoom, draw(-0.12, 0.3)], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), [count, 4, side, side], align_corners=False)
        rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)  # what is cut away has no colour to lend
        rgba = F.grid_sample(rgba, grid, padding_mode="zeros", align_corners=False)
        rgba = torch.cat([rgba[:, :3] / rgba[:, 3:].clamp(min=0.02), rgba[:, 3:]], 1)
        tint = torch.stack([draw(0.88, 1.12) for _ in range(3)], 1)[..., None, None]
        figure = (rgba[:, :3].clamp(min=1e-4) ** draw(0.8, 1.15).view(-1, 1, 1, 1) * tint).clamp(0, 1)
        corner = torch.cat([self.colours(count)[..., None], self.colours(count)[..., None]], -1)[:, :, None].expand(
            -1, -1, 2, -1
        )
        ground = F.interpolate(corner, size=(side, side), mode="bilinear", align_corners=True)
        alpha = rgba[:, 3:]
        return torch.lerp(ground, figure, alpha)

    def colours(self, count: int) -> Tensor:
        base = torch.rand(count, 3, device=self.device)
        return torch.lerp(base.mean(1, keepdim=True), base, 0.35) * 0.75 + 0.1

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Pictures in 0..1, one in two mirrored, and labels."""
        i = torch.randint(len(self.pictures), (size,), device=self.device)
        pictures, labels = self.pictures[i].float() / 255, self.labels[i].clone()
        if self.cutouts is not None:
            few = max(1, size // 12)
            pictures[:few] = self.painted(few)
            labels[:few] = 0
            labels[:few, 1] = PAINTED
        pictures = torch.where(torch.rand(size, 1, 1, 1, device=self.device) < 0.5, pictures.flip(3), pictures)
        return (recoloured(pictures) if self.recolour else pictures), labels


def recoloured(pictures: Tensor) -> Tensor:
    """Pictures N×3×H×W in 0..1 under another light: gains of .85 to 1.15 per channel, saturation .8 to 1.3, gamma .85
    to 1.15; a few hundred drawings see many lights."""
    n, like = len(pictures), {"device": pictures.device}

    def draw(low: float, high: float, columns: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(n, columns, 1, 1, **like)

    grey = pictures.mean(1, keepdim=True)
    pictures = torch.lerp(grey, pictures, draw(0.8, 1.3)) * draw(0.85, 1.15, 3)
    return pictures.clamp(1e-4, 1) ** draw(0.85, 1.15)


def read_pool(folder: Path) -> tuple[Tensor, Tensor]:
    """The portraits that `tools.draw_pool` left: pictures N×3×side×side uint8, labels N×slots int64."""
    files = [load_file(path) for path in sorted(folder.glob("pool-*.safetensors"))]
    if not files:
        raise SystemExit(f"No portraits in {folder}: draw some with python -m tools.draw_pool --out {folder}")
    return torch.cat([f["pictures"] for f in files]), torch.cat([f["labels"] for f in files]).long()


def hidden(labels: Tensor) -> Tensor:
    """Labels with slots set to "any" (3 in 10; all in 1 of 10); whoever has no token may be called a stranger."""
    keep = torch.rand(labels.shape, device=labels.device) > 0.3
    keep[:, 0] |= True
    keep &= torch.rand(len(labels), 1, device=labels.device) > 0.1
    labels = labels * keep
    stranger = 1 + KNOWN + torch.randint(STRANGERS, (len(labels),), device=labels.device)
    called = (labels[:, 0] == 0) & (torch.rand(len(labels), device=labels.device) < 0.15) & keep.any(1)
    labels[:, 0] = torch.where(called, stranger, labels[:, 0])
    return labels
