"""Train the bundled VAE encoder (bundled/vae_encoder.safetensors): an autoencoder that learns to reconstruct pictures.

    python -m tools.train_latent_model --out folder --ae-minutes 2 --dit-minutes 0          # on a GPU
    python -m tools.train_small_vae --data judge_data.zip --init folder/autoencoder.safetensors --minutes 40

The first line draws portraits and learns from them; the second goes on with pictures of every kind (`tools.judge_data`
tells where they come from), on a CPU thread or a GPU. Without `--init` it begins with nothing.

The network is `tools.latent_networks.Autoencoder`: TAESD's layout, 16 latent channels at an eighth. The loss is that
tool's L1 over pixels and three levels of a Laplacian pyramid, with noise on the latents, which keeps different pictures
apart there as the KL term of a VAE does; batch normalisation gives every channel unit deviation, and is folded into the
last layer in the end. Weights of others, such as those of TAESD or of LPIPS, have no part in it.

The schedule follows the clock. A state is kept beside the file every `--save` minutes, and the same command goes on
from it. Weights are an exponential moving average, stored as fp16; the decoder stays in the state.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from antipure.methods.diffusion.autoencoder import ENCODER_FORMAT
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from tools.judge_data import TilesOnDevice
from tools.latent_networks import Autoencoder
from tools.latent_training import Average, Clock, autocast, pyramid_loss, save_atomically

HALVES = ("taesd_encoder", "taesd_decoder")
LATENT_NOISE = 0.2  # of a latent's deviation, at most


def initial(path: Path | None, width: int) -> Autoencoder:
    """The network to begin with: new, or that of a file of `tools.train_latent_model`."""
    network = Autoencoder(width)
    if path is not None:
        state = {k: v.float() for k, v in load_file(path).items() if k.startswith(HALVES)}
        missing = network.load_state_dict(state, strict=False).missing_keys
        if any(key.startswith(HALVES) for key in missing):
            raise SystemExit(f"{path} lacks {missing[0]}; give an autoencoder of tools.train_latent_model.")
    return network


def step_loss(network: Autoencoder, pictures: Tensor) -> Tensor:
    """Reconstruction through noised latents. pictures: N×3×H×W in 0..1."""
    latents = network.encode(pictures)
    noise = torch.rand(len(latents), 1, 1, 1, device=latents.device) * LATENT_NOISE
    loss = pyramid_loss(network.decode(latents + noise * torch.randn_like(latents)).float(), pictures)
    return loss + 0.02 * (latents.abs() - 3).clamp(min=0).square().mean()


@torch.no_grad()
def measure(network: Autoencoder, tiles: TilesOnDevice, batch: int, count: int = 512) -> float:
    """Mean and variance of each latent channel into the norm, from `count` tiles; returns the round trip's dB."""
    network.eval()
    batches = [(tiles.batch(batch) + 1) / 2 for _ in range(math.ceil(count / batch))]
    latents = torch.cat([network.taesd_encoder(b).float() for b in batches])
    network.norm.running_mean.copy_(latents.mean((0, 2, 3)))
    network.norm.running_var.copy_(latents.var((0, 2, 3)))
    errors = torch.stack([(network.decode(network.encode(b)).clamp(0, 1) - b).square().mean() for b in batches])
    return float(-10 * errors.mean().log10())


def encoder_file(network: Autoencoder) -> dict[str, Tensor]:
    """The encoder alone under TAESD's published names, the norm folded in, fp16."""
    prefix = f"{HALVES[0]}."
    return {k.removeprefix(prefix): v for k, v in network.exported().items() if k.startswith(prefix)}


def save(network: Autoencoder, path: Path, training: dict) -> None:
    """Write the encoder as the pack loads it."""
    metadata = {"format": ENCODER_FORMAT, "training": json.dumps(training)}
    save_file(encoder_file(network), path.with_suffix(".partial"), metadata=metadata)
    path.with_suffix(".partial").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the file of tools.judge_data")
    add("--init", type=Path, help="autoencoder.safetensors of tools.train_latent_model to go on from")
    add("--out", type=Path, default=Path("bundled/vae_encoder.safetensors"))
    add("--minutes", type=float, default=40, help="of the whole schedule")
    add("--batch", type=int, help="tiles a step (default: 128 on a GPU, 8 on a CPU)")
    add("--tile", type=int, default=64, help="pixels of a side")
    add("--width", type=int, default=64)
    add("--rate", type=float, default=5e-4, help="highest learning rate")
    add("--average", type=float, default=0.995, help="decay of the moving average")
    add("--seed", type=int, default=15)
    add("--threads", type=int, help="CPU threads")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--save", type=float, default=2, help="minutes between states")
    args = parser.parse_args()

    device = torch.device(args.device)
    batch = args.batch or (128 if device.type == "cuda" else 8)
    if args.threads:
        torch.set_num_threads(args.threads)
    network = initial(args.init, args.width).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), args.rate, betas=(0.9, 0.98), weight_decay=1e-3)
    average, clock = Average(network, args.average), Clock(args.minutes)
    state_file = args.out.with_suffix(".state")
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.state, average.steps = state["average"], state["steps"]
        clock = Clock(args.minutes, state["spent"])
    seed = args.seed + average.steps  # other tiles after a break
    torch.manual_seed(seed)
    tiles = TilesOnDevice(args.data, args.tile, device, seed)

    def write() -> None:
        own = {k: v.clone() for k, v in network.state_dict().items()}
        save_atomically({"network": own, "optimizer": optimizer.state_dict(), "average": average.state,
                         "steps": average.steps, "spent": clock.spent}, state_file)  # fmt: skip
        network.load_state_dict(average.state)
        quality = measure(network, tiles, batch, 128 if clock.share < 1 else 1024)
        told = {k: str(v) for k, v in vars(args).items() if k not in ("data", "init", "out")}
        told |= {"batch": batch, "steps": average.steps, "round_trip_db": round(quality, 2)}
        save(network, args.out, told)
        tqdm.write(f"{clock.spent:.1f} min, {average.steps} steps: round trip {quality:.2f} dB on training tiles")
        network.load_state_dict(own)

    saved, shown = clock.spent, None
    with tqdm(mininterval=10, desc="training") as bar:
        while clock.share < 1:
            network.train()
            for group in optimizer.param_groups:
                group["lr"] = clock.rate(args.rate)
            pictures = ((tiles.batch(batch) + 1) / 2).contiguous(memory_format=torch.channels_last)
            with autocast(device):
                loss = step_loss(network, pictures)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update(network)
            bar.update()
            if average.steps % 20 == 0:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise SystemExit(f"The loss is {value} at step {average.steps}; the last state is kept.")
                shown = value if shown is None else 0.9 * shown + 0.1 * value
                bar.set_postfix(loss=f"{shown:.4f}", done=f"{clock.share:.0%}")
            if clock.spent - saved > args.save:
                write()
                saved = clock.spent
    started = time.monotonic()
    write()
    print(f"{average.steps} steps, loss {shown}, written in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
