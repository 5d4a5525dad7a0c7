"""Train the bundled pixel DDPM (bundled/denoiser.safetensors) from scratch on a CPU or a GPU.

    python -m tools.train_denoiser --out bundled/denoiser.safetensors

A small `UNet2DModel` without attention over 2×2 pixel-unshuffled pixels (the noise process is unchanged by that
permutation, a forward costs a quarter). Epsilon prediction, linear schedule 1e-4..0.02, T = 1000. Purification and
AntiPure live at t <= 150, so low timesteps are drawn most often; all 1000 are trained.
Weights are an exponential moving average, stored as fp16. Same seed, machine and thread count: same file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
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
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
PATCH = 2


def sample_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    """0-based timesteps: 55 % uniform below 20, 35 % below 150, 10 % over all 1000."""
    kind = torch.rand(count, generator=generator)
    top = torch.where(kind < 0.55, 20, torch.where(kind < 0.9, 150, 1000))
    return (torch.rand(count, generator=generator) * top).long()


def save(path: Path, weights: dict, training: dict) -> None:
    """Write the file the pack loads: fp16 weights, configuration in the safetensors metadata."""
    config = {"unet": UNET, "scheduler": SCHEDULER, "patch": PATCH, "tile": 64, "training": training}
    halves = {k: v.detach().half().contiguous().cpu() for k, v in weights.items()}
    temporary = path.with_suffix(".partial")
    save_file(halves, temporary, metadata={"format": "antipure-pixel-denoiser", "config": json.dumps(config)})
    temporary.replace(path)


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
    args = parser.parse_args()

    from diffusers import UNet2DModel

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    sampler = TileSampler(args.seed)
    device = torch.device(args.device)
    net = UNet2DModel(**UNET).to(device).to(memory_format=torch.channels_last)
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.steps, pct_start=0.04, final_div_factor=100
    )
    betas = torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0).float()

    started, running = time.time(), None
    bar = tqdm(range(args.steps), mininterval=20, desc="training")
    for step in bar:
        x0 = torch.from_numpy(sampler.batch(args.batch))
        t = sample_timesteps(args.batch, generator)
        eps = torch.randn(x0.shape, generator=generator)
        a = abar[t].view(-1, 1, 1, 1)
        x_t = F.pixel_unshuffle(a.sqrt() * x0 + (1 - a).sqrt() * eps, PATCH)
        x_t, eps, t = x_t.to(device), F.pixel_unshuffle(eps, PATCH).to(device), t.to(device)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        half = step < args.steps * (1 - args.fp32_tail)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            prediction = net(x_t, t).sample
        loss = F.mse_loss(prediction.float(), eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.9995, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in net.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        running = loss.item() if running is None else 0.995 * running + 0.005 * loss.item()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{running:.4f}")
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            minutes = round((time.time() - started) / 60, 1)
            save(args.out, average, {**vars(args), "out": args.out.name, "step": step + 1, "minutes": minutes})


if __name__ == "__main__":
    main()
