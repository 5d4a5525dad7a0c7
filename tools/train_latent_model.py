"""Train the demo latent diffusion model of portraits from scratch: an autoencoder, then a transformer over its latents.

    python -m tools.train_latent_model --out folder --device cuda --ae-minutes 2 --dit-minutes 6.5
    python -m tools.train_latent_model --out folder --device cpu --ae-minutes 60 --dit-minutes 180 --pool 6000

Pictures are drawn by `tools.portraits` beforehand (`--pool` of them, or as many as `--pool-minutes` gives); `--painted`
adds a file of cut-out painted portraits over backgrounds of their own. Learning rates follow the share of each stage's
minutes that has passed, so a run always ends annealed. A state is saved beside the results every `--save` minutes and
at the end; the same command goes on from it. Weights are exponential moving averages, stored in fp16.

Left in `--out`: autoencoder.safetensors, model-1.safetensors to model-4.safetensors (parts of one file),
conditions.safetensors, samples.png (rows: real, round trip, CFG 1, CFG 3, by style; then identities).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.latent_networks import CHANNELS, FACTOR, Autoencoder, Conditions, MMDiT
from tools.latent_pool import KNOWN, PAINTED, SIZES, STRANGERS, Pool, hidden
from tools.latent_training import Average, Clock, autocast, read_model, save_atomically
from tools.portraits import SIDE, SLOTS
from tools.train_latent_autoencoder import train_autoencoder

SHARDS = 4  # files of the model, each small enough for any host
SHIFT = 3.0  # of core's SD 3 sampling: sigma = SHIFT·t / (1 + (SHIFT - 1)·t)


def train_model(args: argparse.Namespace, pool: Pool, network: Autoencoder, device: torch.device) -> nn.ModuleDict:
    """Flow matching (arXiv 2403.03206): x = (1 - s)·latent + s·noise, the target is noise - latent."""
    state_file = args.out / "model.state"
    both = nn.ModuleDict({"model": MMDiT(), "conditions": Conditions(SIZES)}).to(device)
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(both.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01, **fused)
    average, clock = Average(both, 0.9995 if device.type == "cuda" else 0.999), Clock(args.dit_minutes)
    if args.start is not None:
        read_model(args.start, both["model"], both["conditions"])
        average = Average(both, average.decay)
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        both.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.state, average.steps = state["average"], state["steps"]
        clock = Clock(args.dit_minutes, state["spent"])
    if clock.share >= 1:
        both.load_state_dict(average.state)
        return both.eval()

    def save() -> None:
        save_atomically({"network": both.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state,
                         "steps": average.steps, "spent": clock.spent}, state_file)  # fmt: skip

    @torch.no_grad()
    def encoded(count: int) -> tuple[Tensor, Tensor]:
        """Latents of mirrored and painted pictures too, so encoded anew all the time."""
        with autocast(device):
            parts = [(network.encode(p).float(), rows) for p, rows in (pool.batch(args.ae_batch) for _ in range(count))]
        return torch.cat([z for z, _ in parts]), torch.cat([rows for _, rows in parts])

    torch.manual_seed(args.seed + average.steps)  # other pictures after a break
    whole = max(1, args.latents // args.ae_batch)
    latents, labels = encoded(whole)
    forward = torch.compile(both["model"]) if args.compile and device.type == "cuda" else both["model"]
    saved = shown = time.monotonic()
    total, since = torch.zeros((), device=device), 0
    while clock.share < 1:
        if average.steps % 64 == 63:  # a share of the pictures and latents is exchanged for fresh ones
            if device.type == "cuda":
                pool.renew()
            fresh, rows = encoded(max(1, whole // 64))
            at = torch.randint(len(latents) - len(fresh) + 1, ()).item()
            latents[at : at + len(fresh)], labels[at : at + len(fresh)] = fresh, rows
        i = torch.randint(len(latents), (args.batch,), device=device)
        z, rows = latents[i], hidden(labels[i])
        t = torch.randn(args.batch, device=device).sigmoid()
        flat = torch.rand(args.batch, device=device)
        t = torch.where(torch.rand_like(t) < 0.25, flat, t)
        sigma = 2 * t / (1 + t)  # shift 2: between the plain one and the sampler's
        noise = torch.randn_like(z)
        level = sigma.view(-1, 1, 1, 1)
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(args.rate)
        with autocast(device):
            context, pooled = both["conditions"](rows)
            try:
                velocity = forward(torch.lerp(z, noise, level), sigma, context, pooled)
            except Exception as error:
                if forward is both["model"]:
                    raise
                print(f"training without the compiler: {error!r:.300}", flush=True)
                forward = both["model"]
                continue
        loss = (velocity.float() - (noise - z)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        average.update(both)
        total, since = total + loss.detach(), since + 1
        if time.monotonic() - shown > args.report:
            shown = time.monotonic()
            print(f"model {clock.share:5.1%} step {average.steps} loss {float(total) / since:.4f}", flush=True)
            total, since = torch.zeros((), device=device), 0
        if time.monotonic() - saved > 60 * args.save:
            saved = time.monotonic()
            save()
            if args.sheets:
                trained = both.state_dict()
                trained = {k: v.clone() for k, v in trained.items()}
                both.load_state_dict(average.state)
                write_sheet(both, network, pool, args.out / "samples.png", device)
                both.load_state_dict(trained)
    save()
    both.load_state_dict(average.state)
    return both.eval()


@torch.no_grad()
def sample(both: nn.ModuleDict, labels: Tensor, guidance: float, steps: int, noise: Tensor) -> Tensor:
    """Latents N×16×h×w by Euler's method along core's schedule "simple" of SD 3 (shift 3), CFG against all "any"."""
    t = torch.linspace(1, 0, steps + 1, device=noise.device)
    sigmas, x = SHIFT * t / (1 + (SHIFT - 1) * t), noise
    conds = [both["conditions"](labels), both["conditions"](torch.zeros_like(labels))]
    for here, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        level = torch.full((len(x),), here, device=x.device)
        velocity = both["model"](x, level, *conds[0])
        if guidance != 1:
            free = both["model"](x, level, *conds[1])
            velocity = free + guidance * (velocity - free)
        x = x + (after - here) * velocity
    return x


@torch.no_grad()
def write_sheet(both: nn.ModuleDict, network: Autoencoder, pool: Pool, path: Path, device: torch.device) -> None:
    """Rows: real, their round trip, CFG 1, CFG 3 with the same labels; 14 columns (styles in order). Then four known
    identities (real beside CFG 3 by name alone), then CFG 3 by style alone."""
    columns = 14

    def row_of(column: int, value: int, nth: int) -> int:
        """The nth picture of the pool with this label, any picture where there is none."""
        rows = (pool.labels[:, column] == value).nonzero()[:, 0]
        return int(rows[nth]) if len(rows) > nth else nth

    picked = [row_of(1, 1 + i % 6, i // 6) for i in range(12)]
    real, labels = pool.pictures[picked].float() / 255, pool.labels[picked].clone()
    labels[:, 0] = 0
    painted = pool.painted(2) if pool.cutouts is not None else real[:2]
    real, labels = torch.cat([real, painted]), torch.cat([labels, torch.zeros_like(labels[:2])])
    labels[12:, 1] = PAINTED
    side = real.shape[-1] // FACTOR
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(columns, CHANNELS, side, side, generator=generator).to(device)

    def drawn(rows: Tensor, guidance: float) -> Tensor:
        return network.decode(sample(both, rows, guidance, 30, noise)).clamp(0, 1)

    sheet = [real, network.decode(network.encode(real)).clamp(0, 1), drawn(labels, 1.0), drawn(labels, 3.0)]
    named = torch.zeros_like(labels)
    named[:, 0] = 1 + torch.arange(columns) // 2
    known = [row_of(0, 1 + i // 2, i % 2) for i in range(columns)]
    sheet += [pool.pictures[known].float() / 255, drawn(named, 3.0)]
    only = torch.zeros_like(labels)
    only[:, 1] = labels[:, 1]
    sheet += [drawn(only, 1.0), drawn(only, 3.0)]
    grid = torch.stack(sheet).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((grid * 255).round().byte().cpu().numpy()).save(path)


def shards(state: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """A state dict in its order, in `count` parts of about the same size."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    whole, seen = sum(v.numel() for v in state.values()), 0
    for key, value in state.items():
        parts[min(count - 1, seen * count // whole)][key] = value
        seen += value.numel()
    return parts


def write_files(both: nn.ModuleDict, out: Path) -> None:
    """The model in shards of fp16, the tables with the names of their rows."""
    state = {k: v.half().cpu().contiguous() for k, v in both["model"].state_dict().items()}
    for i, part in enumerate(shards(state, SHARDS)):
        save_file(part, out / f"model-{i + 1}.safetensors")
    values = {"who": ["any", *(f"person {i}" for i in range(KNOWN)), *(f"stranger {i + 1}" for i in range(STRANGERS))]}
    values |= {k: list(v) for k, v in SLOTS.items()}
    tables = {k: v.half().cpu().contiguous() for k, v in both["conditions"].state_dict().items()}
    save_file(tables, out / "conditions.safetensors", metadata={"slots": json.dumps(values)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--ae-minutes", type=float, default=2.0)
    add("--dit-minutes", type=float, default=6.5)
    add("--deadline", type=float, default=math.inf, help="minutes after which all is to be over: shortens the model's")
    add("--pool", type=int, default=40_000, help="pictures drawn beforehand")
    add("--pool-minutes", type=float, default=1.0, help="drawing ends after this long")
    add("--draw-batch", type=int, default=128)
    add("--side", type=int, default=SIDE)
    add("--ae-batch", type=int, default=64)
    add("--batch", type=int, default=512)
    add("--rate", type=float, default=7e-4)
    add("--latents", type=int, default=60_000)
    add("--drawn", type=Path, help="folder of tools.draw_pool: instead of drawing; their colours vary")
    add("--from", dest="start", type=Path, help="folder of files to go on from")
    add("--crop", type=int, help="the autoencoder learns from windows of this side, a multiple of 8")
    add("--ae-rate", type=float, default=1e-3)
    add("--colour", type=float, default=1.0, help="weight of the colour loss")
    add("--near", type=float, default=0.05, help="with --from: weight of the distance to the former latents")
    add("--decoder-only", action="store_true", help="with --from: the encoder, and so the latents, stay as they are")
    add("--threads", type=int, help="CPU threads")
    add("--painted", type=Path, help="safetensors with `cutouts`, N×4×160×160 uint8")
    add("--save", type=float, default=2.0, help="minutes between states")
    add("--report", type=float, default=10.0, help="seconds between lines")
    add("--sheets", action="store_true", help="write samples with every state")
    add("--compile", action="store_true", help="on CUDA, if it can")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    pool = Pool(args, device)
    network = train_autoencoder(args, pool, device)
    if args.dit_minutes <= 0:
        return
    args.dit_minutes = min(args.dit_minutes, max(0.2, args.deadline - 0.4 - (time.monotonic() - began) / 60))
    both = train_model(args, pool, network, device)
    write_files(both, args.out)
    write_sheet(both, network, pool, args.out / "samples.png", device)
    print("done", flush=True)


if __name__ == "__main__":
    main()
