"""Train the held-out judge (bundled/judge_denoiser.safetensors) from scratch, on a GPU or a CPU.

    python -m tools.train_judge --data judge_data.zip --out bundled/judge_denoiser.safetensors --minutes 8

The data file comes from `tools.judge_data`. A `StridedUNet` over pixels as they are: epsilon prediction and the noise
schedule, timesteps and excess noise of `tools.train_denoiser`, so that the judge serves for the same purpose, but
another family of networks and other pictures.

The schedule follows the clock: the learning rate falls along a cosine over `--minutes`, whatever the machine's speed.
So the same seed gives the same first steps, not the same file. The state (weights, AdamW's moments; 6 bytes a
parameter) is written beside the file every `--save-every` seconds; `--resume` goes on from it, `--restart` begins a new
schedule there.
Weights are an exponential moving average, stored as fp16.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from antipure.methods.diffusion.strided import StridedUNet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from tools.judge_data import TilesOnDevice

NETWORK = {"block_out_channels": [32, 64, 112, 160], "encoder": [2, 2, 2, 2], "decoder": [2, 2, 2], "embedding": 96}
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
TILE = 64
EXCESS_SIGNS, EXCESS_NORMAL = 12, 10  # levels at most


def alphas_cumprod() -> Tensor:
    """The 1000 values of abar, float64."""
    betas = torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], 1000, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


def build() -> StridedUNet:
    abar = alphas_cumprod()
    return StridedUNet(**NETWORK, log_snr=(abar / (1 - abar)).log())


class Noise:
    """Timesteps and noise, drawn on the device that trains."""

    def __init__(self, device: torch.device, seed: int):
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.device)

    def timesteps(self, count: int) -> Tensor:
        """0-based: 55 % uniform below 20, 35 % below 150, 10 % over all 1000."""
        kind = self._uniform(count)
        top = torch.where(kind < 0.55, 20, torch.where(kind < 0.9, 150, 1000))
        return (self._uniform(count) * top).long()

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, device=self.device)

    def excess(self, like: Tensor, share: float) -> Tensor:
        """Noise that the timestep does not account for, on a share of the tiles: random signs or Gaussian, without
        structure. Pixels in [-1, 1]."""
        n = (len(like), 1, 1, 1)
        level = self._uniform(len(like)).view(n) * 2 / 255
        normal = self.normal(like)
        signs = self._uniform(len(like)).view(n) < 0.5
        chosen = self._uniform(len(like)).view(n) < share
        return torch.where(signs, EXCESS_SIGNS * normal.sign(), EXCESS_NORMAL * normal) * level * chosen


def batch_loss(run: Callable, x0: Tensor, noise: Noise, abar: Tensor, share: float, half: bool) -> Tensor:
    """Mean squared error of the predicted noise, the excess (see `Noise.excess`) counted in.

    run: (x_t, t) -> noise. x0: N×3×H×W in [-1, 1]. abar: 1000 values. half: bf16 inside the network.
    """
    t = noise.timesteps(len(x0))
    a = abar[t].view(-1, 1, 1, 1)
    eps = noise.normal(x0)
    weight = torch.ones_like(a)
    if share > 0:
        excess = a.sqrt() / (1 - a).sqrt() * noise.excess(x0, share)  # in units of eps
        eps = eps + excess
        weight = 1 / (1 + excess.square().mean((1, 2, 3), keepdim=True))
    x_t = (a.sqrt() * x0 + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=half):
        prediction = run(x_t, t)
    return (weight * (prediction.float() - eps).square()).mean()


def compiled(net: nn.Module, batch: int, abar: Tensor) -> Callable | None:
    """The network through torch.compile, both precisions compiled and compared; None where that does not work."""
    plain = lambda x, t: net(x, t).sample  # noqa: E731
    run = torch.compile(plain)
    x0 = torch.rand(batch, 3, TILE, TILE, generator=torch.Generator().manual_seed(5)).to(abar.device) * 2 - 1
    # At first the last layer is zero and so are most gradients: compare with random weights there.
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        for half in (True, False):
            gradients = []
            for way in (plain, run):
                loss = batch_loss(way, x0, Noise(abar.device, 5), abar, 0.3, half)
                flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
                gradients.append(flat.float())
            apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
            print(f"compiled, {'bf16' if half else 'fp32'}: gradients {apart:.2g} apart", flush=True)
            if not apart < (0.12 if half else 0.05):
                return None
        return run
    except Exception as error:  # compilers raise nearly anything
        print(f"torch.compile does not work here ({type(error).__name__}: {str(error)[:200]})", flush=True)
        return None
    finally:
        net.load_state_dict(kept)


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    temporary = path.with_suffix(".partial")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, temporary, metadata=metadata)
    temporary.replace(path)


def save(path: Path, weights: dict[str, Tensor], training: dict) -> None:
    """Write the file the pack loads: fp16 weights, configuration in the safetensors metadata."""
    config = {"network": "strided", "unet": NETWORK, "scheduler": SCHEDULER, "patch": 1, "tile": TILE}
    config["training"] = training
    metadata = {"format": "antipure-pixel-denoiser", "config": json.dumps(config)}
    _write({k: v.half() for k, v in weights.items()}, path, metadata)


def save_state(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, progress: dict) -> None:
    """Write what `--resume` needs: weights as fp16, moments as bf16, steps and seconds spent."""
    tensors = {}
    for name, parameter in net.named_parameters():
        moments = optimizer.state.get(parameter, {})
        tensors[f"weight.{name}"] = parameter.half()
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in moments:
                tensors[f"{moment}.{name}"] = moments[moment].bfloat16()
    _write(tensors, path, {"progress": json.dumps(progress)})


def load_state(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Read a state into network and optimizer (both on their device). Returns its progress."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            state = {"step": torch.tensor(float(progress["step"]), device=parameter.device)}
            for moment in ("exp_avg", "exp_avg_sq"):
                value = tensors.get(f"{moment}.{name}", torch.zeros(parameter.shape))
                state[moment] = (
                    value.float()
                    .to(parameter.device)
                    .contiguous(memory_format=torch.channels_last if value.ndim == 4 else torch.contiguous_format)
                )
            optimizer.state[parameter] = state
    return progress


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the file of tools.judge_data")
    parser.add_argument("--out", type=Path, default=Path("bundled/judge_denoiser.safetensors"))
    parser.add_argument(
        "--minutes", type=float, default=8, help="of the whole schedule, loading and compiling included"
    )
    parser.add_argument("--batch", type=int, help="tiles a step (default: 128 on a GPU, 16 on a CPU)")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--warmup", type=int, default=300, help="steps in which the learning rate rises")
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--fp32-tail",
        type=float,
        default=0.5,
        help="last share of the time without bf16; on a GPU in TF32, on a CPU there is no bf16",
    )
    parser.add_argument("--excess", type=float, default=0.4, help="share of the tiles with excess noise")
    parser.add_argument("--excess-from", type=float, default=0.3, help="share of the time before there is excess noise")
    parser.add_argument("--save-every", type=float, default=60, help="seconds")
    parser.add_argument("--resume", type=Path, help="go on from this state (and from the average in --out)")
    parser.add_argument("--restart", action="store_true", help="with --resume: a new schedule from its weights")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    device = torch.device(args.device)
    gpu = device.type == "cuda"
    batch = args.batch or (128 if gpu else 16)
    torch.manual_seed(args.seed)
    if gpu:
        torch.set_float32_matmul_precision("high")  # TF32: ten bits, as fp16
        torch.backends.cudnn.benchmark = True
    net = build().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=gpu)
    progress = {"step": 0, "seconds": 0.0}
    if args.resume is not None:
        progress = load_state(args.resume, net, optimizer)
    average = {k: v.detach().clone() for k, v in net.named_parameters()}
    if args.resume is not None and args.out.exists():
        average = {k: v.float().to(device) for k, v in load_file(args.out).items()}
    step, spent = progress["step"], 0.0 if args.restart else progress["seconds"]
    first = step
    tiles, noise = TilesOnDevice(args.data, TILE, device, args.seed + step), Noise(device, args.seed + step)
    abar = alphas_cumprod().float().to(device)
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters / 1e6:.2f} M parameters; {tiles.bytes.numel() / 1e6:.0f} MB of pixels; {device}", flush=True)
    run = None if args.no_compile or not gpu else compiled(net, batch, abar)
    if run is None:
        run = lambda x, t: net(x, t).sample  # noqa: E731
    print(f"ready after {time.monotonic() - started:.0f} s", flush=True)

    ready = time.monotonic()
    whole = args.minutes * 60 - (0 if spent else ready - started) - 3  # seconds of the schedule; 3 to write the files
    saved, running, mean = ready, torch.zeros((), device=device), None
    names, values = zip(*net.named_parameters(), strict=True)
    averaged = [average[name] for name in names]

    def write() -> None:
        seconds = spent + time.monotonic() - ready
        training = {**{k: str(v.name if isinstance(v, Path) else v) for k, v in vars(args).items()}, "batch": batch}
        save(args.out, average, {**training, "step": step, "seconds": round(seconds), "loss": mean})
        save_state(args.out.with_suffix(".state"), net, optimizer, {"step": step, "seconds": seconds})

    with tqdm(mininterval=10, desc="training") as bar:
        while (share := (spent + time.monotonic() - ready) / whole) < 1:
            rate = (
                args.lr * min(1, (step - first + 1) / args.warmup) * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            excess = args.excess if share >= args.excess_from else 0.0
            loss = batch_loss(run, tiles.batch(batch), noise, abar, excess, gpu and share < 1 - args.fp32_tail)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(values, 1.0)
            optimizer.step()
            decay = min(0.9995, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(averaged, list(values), 1 - decay)
                running += loss.detach()
            step += 1
            bar.update()
            if step % 50 == 0:  # the only wait for the device
                last, mean = mean, round(running.item() / 50, 5)
                running.zero_()
                if not math.isfinite(mean):
                    raise SystemExit(f"The loss is {mean} at step {step} (before: {last}); the last state is kept.")
                bar.set_postfix(loss=f"{mean:.4f}", lr=f"{rate:.1e}", done=f"{share:.0%}")
            if time.monotonic() - saved > args.save_every:
                write()
                saved = time.monotonic()
    write()
    print(f"{step} steps, {time.monotonic() - started:.0f} s, loss {mean}", flush=True)


if __name__ == "__main__":
    main()
