"""The autoencoder of the demo latent model: learns to reconstruct portraits (see `train_latent_model`)."""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.latent_networks import Autoencoder
from tools.latent_pool import Pool
from tools.latent_training import (
    Average,
    Clock,
    autocast,
    colour_loss,
    pyramid_loss,
    random_crops,
    read_autoencoder,
    save_atomically,
)


def train_autoencoder(args: argparse.Namespace, pool: Pool, device: torch.device) -> Autoencoder:
    state_file = args.out / "autoencoder.state"
    network = Autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=1e-3)
    average, clock = Average(network, 0.995), Clock(args.ae_minutes)
    before = None  # whom the latents are to stay near, so that what the transformer knows carries over
    if args.start is not None:
        read_autoencoder(args.start, network)
        before = copy.deepcopy(network).eval().requires_grad_(False)
        average = Average(network, 0.995)
        if args.decoder_only:  # latents stay what they are, and so what a transformer knows of them
            network.taesd_encoder.requires_grad_(False)
            network.norm.eval()
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.state, average.steps = state["average"], state["steps"]
        clock = Clock(args.ae_minutes, state["spent"])

    def save() -> None:
        save_atomically({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state,
                         "steps": average.steps, "spent": clock.spent}, state_file)  # fmt: skip

    torch.manual_seed(args.seed + average.steps)  # other pictures after a break
    saved = shown = time.monotonic()
    total, since = 0.0, 0
    while clock.share < 1:
        pictures, _ = pool.batch(args.ae_batch)
        pictures = random_crops(pictures, args.crop) if args.crop else pictures
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(args.ae_rate)
        with autocast(device):
            latents = network.encode(pictures)
            noise = torch.rand(len(latents), 1, 1, 1, device=device) * 0.2
            back = network.decode(latents + noise * torch.randn_like(latents)).float()
            loss = pyramid_loss(back, pictures) + args.colour * colour_loss(back, pictures)
            if before is not None and not args.decoder_only:
                loss = loss + args.near * (latents - before.encode(pictures)).square().mean()
            if average.steps % 4 == 0:  # latents halve as pictures do: smoother to draw in
                small = network.decode(F.avg_pool2d(latents, 2)).float()
                loss = loss + 0.25 * pyramid_loss(small, F.avg_pool2d(pictures, 2))
            loss = loss + 0.02 * (latents.abs() - 3).clamp(min=0).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network)
        if average.steps % 8 == 0:
            total, since = total + float(loss.detach()), since + 1
        if time.monotonic() - shown > args.report:
            shown = time.monotonic()
            print(f"autoencoder {clock.share:5.1%} step {average.steps} loss {total / max(since, 1):.4f}", flush=True)
            total, since = 0.0, 0
        if time.monotonic() - saved > 60 * args.save:
            saved = time.monotonic()
            save()
    if clock.before < args.ae_minutes:
        save()
    network.load_state_dict(average.state)
    network.eval()
    measure_latents(network, pool, args, normalise=not args.decoder_only)
    save_file(network.exported(), args.out / "autoencoder.safetensors")
    return network


@torch.no_grad()
def measure_latents(network: Autoencoder, pool: Pool, args: argparse.Namespace, normalise: bool) -> None:
    """Exact mean and variance of each latent channel into the norm, and the round trip's quality into the log."""

    def encoded(pictures: Tensor) -> Tensor:
        return network.taesd_encoder(pictures).float()

    torch.manual_seed(args.seed)
    batches = [
        pool.batch(args.ae_batch)[0] for _ in range(max(2, 2048 // args.ae_batch) if pool.device.type == "cuda" else 4)
    ]
    if normalise:
        latents = torch.cat([encoded(b) for b in batches])
        network.norm.running_mean.copy_(latents.mean((0, 2, 3)))
        network.norm.running_var.copy_(latents.var((0, 2, 3)))
    errors = torch.stack([(network.decode(network.encode(b)).clamp(0, 1) - b).square().mean() for b in batches])
    print(f"autoencoder: round trip {float(-10 * errors.mean().log10()):.2f} dB", flush=True)
