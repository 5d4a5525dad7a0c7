"""Train the bundled pixel DDPM (bundled/denoiser.safetensors) from scratch on a CPU or a GPU.

    python -m tools.train_denoiser --out bundled/denoiser.safetensors

A small `UNet2DModel` without attention over 2×2 pixel-unshuffled pixels (the noise process is unchanged by that
permutation, a forward costs a quarter). Epsilon prediction, linear schedule 1e-4..0.02, T = 1000. Purification and
AntiPure live at t <= 150, so low timesteps are drawn most often; all 1000 are trained.
From `--mismatch-from` on, a share of the tiles carries more noise than its timestep says, and the network is asked to
take out all of it: a purifier that leaves random noise behind would make every protection look better than it is.
Weights are an exponential moving average, stored as fp16. Same seed, machine and thread count: same file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from antipure.methods.files import write_safetensors
from safetensors.torch import load_file
from tqdm import tqdm

from tools.training_data import TileSampler

UNET = {
    "sample_size": 32,
    "in_channels": 12,
    "out_channels": 12,
    "block_out_channels": [48, 64, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
    "norm_num_groups": 8,
    "add_attention": False,
    "resnet_time_scale_shift": "scale_shift",
}
# The held-out purifier: other widths and depth, attention in the middle, another seed. No protection is made with it.
HELD_OUT = {**UNET, "block_out_channels": [32, 64, 96], "layers_per_block": 2, "add_attention": True}
NETWORKS = {"bundled": UNET, "held_out": HELD_OUT}
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
PATCH = 2


def sample_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    """0-based timesteps: 55 % uniform below 20, 35 % below 150, 10 % over all 1000."""
    kind = torch.rand(count, generator=generator)
    top = torch.where(kind < 0.55, 20, torch.where(kind < 0.9, 150, 1000))
    return (torch.rand(count, generator=generator) * top).long()


def excess_noise(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Noise that the timestep does not account for, on 30 % of the tiles: random signs of up to 10 levels, or Gaussian
    of up to 8 levels. Pixels in [-1, 1]; no adversarial structure."""
    count = shape[0]
    level = torch.rand(count, generator=generator).view(-1, 1, 1, 1) * 2 / 255
    normal = torch.randn(shape, generator=generator)
    signs = torch.rand(count, generator=generator).view(-1, 1, 1, 1) < 0.5
    chosen = torch.rand(count, generator=generator).view(-1, 1, 1, 1) < 0.3
    return torch.where(signs, 10 * level * normal.sign(), 8 * level * normal) * chosen


def save(path: Path, network: dict, weights: dict, training: dict) -> None:
    """Write the file the pack loads: fp16 weights, configuration in the safetensors metadata."""
    config = {"unet": network, "scheduler": SCHEDULER, "patch": PATCH, "tile": 64, "training": training}
    halves = {k: v.half() for k, v in weights.items()}
    write_safetensors(path, halves, {"format": "antipure-pixel-denoiser", "config": json.dumps(config)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bundled/denoiser.safetensors"))
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fp32-tail", type=float, default=0.1, help="last share of the steps without bf16 autocast")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--mismatch-from", type=int, default=9500, help="step from which excess noise is added")
    parser.add_argument("--start", type=int, default=0, help="first step, to go on with --resume")
    parser.add_argument("--stop", type=int, help="stop after this step of the schedule")
    parser.add_argument("--resume", type=Path, help="start from this file's weights")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="bundled")
    args = parser.parse_args()
    network = NETWORKS[args.network]

    from diffusers import UNet2DModel

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    sampler = TileSampler(args.seed)
    device = torch.device(args.device)
    net = UNet2DModel(**network)
    if args.resume is not None:
        net.load_state_dict({key: value.float() for key, value in load_file(args.resume).items()})
    net = net.to(device).to(memory_format=torch.channels_last)
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.steps, pct_start=0.04, final_div_factor=100
    )
    for _ in range(args.start):
        schedule.step()
    last = args.stop or args.steps
    betas = torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0).float()

    started, running = time.time(), None
    bar = tqdm(range(args.start, last), mininterval=20, desc="training")
    for step in bar:
        x0 = torch.from_numpy(sampler.batch(args.batch))
        t = sample_timesteps(args.batch, generator)
        eps = torch.randn(x0.shape, generator=generator)
        a = abar[t].view(-1, 1, 1, 1)
        weight = torch.ones_like(a)
        if step >= args.mismatch_from:
            excess = a.sqrt() / (1 - a).sqrt() * excess_noise(tuple(x0.shape), generator)  # in units of eps
            eps = eps + excess
            weight = 1 / (1 + excess.square().mean((1, 2, 3), keepdim=True))
        x_t = F.pixel_unshuffle(a.sqrt() * x0 + (1 - a).sqrt() * eps, PATCH)
        x_t, eps, t = x_t.to(device), F.pixel_unshuffle(eps, PATCH).to(device), t.to(device)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        half = step < args.steps * (1 - args.fp32_tail)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            prediction = net(x_t, t).sample
        loss = (weight.to(device) * (prediction.float() - eps).square()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.9995, (1 + step - args.start) / (10 + step - args.start))
        with torch.no_grad():
            for k, v in net.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        running = loss.item() if running is None else 0.995 * running + 0.005 * loss.item()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{running:.4f}")
        if (step + 1) % args.save_every == 0 or step + 1 == last:
            minutes = round((time.time() - started) / 60, 1)
            save(
                args.out,
                network,
                average,
                {**vars(args), "out": args.out.name, "resume": bool(args.resume), "step": step + 1, "minutes": minutes},
            )


if __name__ == "__main__":
    main()
