"""Train the bundled toy generator (bundled/toy_stargan.safetensors) from scratch on a CPU or a GPU.

    OMP_NUM_THREADS=1 python -m tools.train_generator

StarGAN's generator in small over procedural portraits (antipure.methods.generators.procedural_faces), which know what
the same face looks like with other attributes: so the loss is the distance to the true edited face, without a
discriminator.
So trained, so small a network over so clean pictures is less fragile than real StarGANs, which fail nearly always. So
from `--fragile-from` on a loss asks for outputs that one small adversarial step spoils, the opposite of adversarial
training: what is measured on the toy is how an attack or a patch works, not how fragile small networks are.
The faces a network is trained on have seeds below `HELD_OUT`; those it is judged on start there. Neither set is stored.
bf16 autocast but for the last tenth of the steps. Weights are an exponential moving average, stored as fp16.
`--resume` goes on from the state beside the output file, which is gone when training is complete.
Same seed, machine and thread count: same weights.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from antipure.methods.files import write_checkpoint, write_safetensors
from antipure.methods.generators.procedural_faces import (
    EDITS,
    GIVEN_FRAME,
    HAIR,
    HELD_OUT,
    draw_faces,
    edited_attributes,
    random_attributes,
)
from antipure.methods.generators.stargan import ResidualBlock, StarGANNetwork
from antipure.methods.lora_patching.defence_metrics import edit_mask
from torch import Tensor
from tqdm import tqdm

NETWORK = {"conv_dim": 16, "n_labels": 5, "blocks": 6}
FRAGILITY = 0.08
OFTEN = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 1.0])  # how often each of `EDITS` is asked for, and none of them
CHANGED = 2.0  # weight of the mean over the pixels that an edit changes, beside the mean over all
LIFT, CONTRAST, MEAN = 4.0, 0.36, 0.1


def labels_of(edit: Tensor) -> Tensor:
    """N×len(EDITS) target labels, one per edit; all 0 for len(EDITS): the face is to stay as it is."""
    return torch.nn.functional.one_hot(edit, len(EDITS) + 1)[:, :-1].float()


class Faces:
    """Batches from `count` training faces, all of them drawn under all six attributes beforehand (uint8)."""

    def __init__(self, count: int):
        seeds = range(count)
        if count > HELD_OUT:
            raise SystemExit(f"At most {HELD_OUT} training faces: the seeds from there on are held out.")
        self.own = random_attributes(seeds)
        shape = (len(HAIR), 3, count, 3, 64, 64)  # without glasses, with the own ones, with those that the edit gives
        self.pictures = torch.empty(shape, dtype=torch.uint8)
        for h in range(len(HAIR)):
            for g, frame in enumerate((None, None, GIVEN_FRAME)):
                drawn = draw_faces(seeds, torch.full((count,), h), torch.full((count,), g > 0), frame=frame)
                self.pictures[h, g] = (drawn * 255).round().byte()

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels in [-1, 1], labels of a random edit, the truth of that edit."""
        i = torch.randint(self.pictures.shape[2], (size,), generator=generator)
        edit = torch.multinomial(OFTEN, size, replacement=True, generator=generator)
        hair, glasses = self.own[0][i], self.own[1][i]
        new_hair, new_glasses = edited_attributes(hair, glasses, edit)
        given = (new_glasses & ~glasses).long()
        flip = torch.rand(size, 1, 1, 1, generator=generator) < 0.5

        def pixels(h: Tensor, g: Tensor) -> Tensor:
            x = self.pictures[h, g, i].float() / 127.5 - 1
            return torch.where(flip, x.flip(-1), x)

        return pixels(hair, glasses.long()), labels_of(edit), pixels(new_hair, new_glasses.long() + given)


def distance(output: Tensor, truth: Tensor, pixels: Tensor) -> Tensor:
    """Mean L1 over the pictures and, `CHANGED` times, over the pixels that each picture's edit changes.

    By picture, so that a frame of few pixels counts as much as a head of hair. Pictures the edit leaves alone add 0.
    """
    error = (output - truth).abs()
    changes = ((truth - pixels).abs().amax(1, keepdim=True) > 0.05).float()
    inside = (changes * error).sum((1, 2, 3)) / (3 * changes.sum((1, 2, 3))).clamp(min=1)
    return error.mean() + CHANGED * inside.mean()


def robustness(
    network: StarGANNetwork, pixels: Tensor, labels: Tensor, output: Tensor, generator: torch.Generator
) -> Tensor:
    """How far the masked L2 that one gradient step of 0.05 reaches falls short of `FRAGILITY`, mean over the pictures.

    Pictures the edit leaves alone count as 0. output: the network's for the pixels.
    """
    plain = output.detach()
    adv = (pixels + 0.1 * torch.rand(pixels.shape, generator=generator).to(pixels) - 0.05).requires_grad_()
    (gradient,) = torch.autograd.grad((network(adv, labels) - plain).square().mean(), adv)
    moved = adv.detach() + 0.05 * gradient.sign()
    adv = torch.minimum(torch.maximum(moved, pixels - 0.05), pixels + 0.05).clamp(-1, 1)
    mask = edit_mask(plain, pixels)
    distance = (mask * (network(adv, labels).float() - plain).square()).sum((1, 2, 3))
    l2 = distance / (3 * mask.sum((1, 2, 3))).clamp(min=1)
    return ((FRAGILITY - l2).clamp(min=0) * mask.amax((1, 2, 3))).mean()


@torch.no_grad()
def start_as_identity(network: StarGANNetwork) -> None:
    """Set some channels so that the untrained network hands the picture on, but for its mean and contrast.

    Strided layers sort 2×2 pixels into channels, transposed ones sort them back, residual blocks start at nothing, and
    a shift of `LIFT` deviations takes the normalised pixels through every ReLU. Instance normalisation forgets colours,
    and with random layers it takes ten times longer to learn to bring them back. Other channels stay as initialised.
    """
    layers = list(network.main)
    first, last = layers[0], layers[-2]
    strided = [m for m in layers if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    transposed = [m for m in layers if isinstance(m, torch.nn.ConvTranspose2d)]
    first.weight[:3] = 0
    for c in range(3):
        first.weight[c, c, 3, 3] = 1
    passing = {first: 3, strided[0]: 12, strided[1]: 48, transposed[0]: 12, transposed[1]: 3}
    for layer in (*strided, *transposed):
        into = layer in strided
        fine = (passing[layer] // 4) if into else passing[layer]
        if into:
            layer.weight[: 4 * fine] = 0
        else:
            layer.weight[:, :fine] = 0
        for c in range(fine):
            for k in range(4):
                coarse, tap = 4 * c + k, (1 + k // 2, 1 + k % 2)
                layer.weight[(coarse, c, *tap)] = 1  # strided: (out, in); transposed: (in, out)
    for layer, count in passing.items():
        layers[layers.index(layer) + 1].bias[:count] = LIFT
    for block in layers:
        if isinstance(block, ResidualBlock):
            block.main[-1].weight.zero_()
    constant = layers[layers.index(transposed[1]) + 1]
    constant.weight[3], constant.bias[3] = 0, 1
    last.weight.zero_()
    for c in range(3):
        last.weight[c, c, 3, 3] = CONTRAST
        last.weight[c, 3, 3, 3] = MEAN - LIFT * CONTRAST


def save(path: Path, weights: dict[str, Tensor], training: dict) -> None:
    """Write the file the pack loads: fp16 weights, architecture and edits in the safetensors metadata."""
    labels = dict(zip(EDITS, labels_of(torch.arange(len(EDITS))).tolist(), strict=True))
    config = {"labels": labels, "size": 64, "training": training}
    halves = {k: v.half() for k, v in weights.items()}
    write_safetensors(path, halves, {"format": "antipure-stargan", "config": json.dumps(config)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bundled/toy_stargan.safetensors"))
    parser.add_argument("--faces", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--fragile", type=float, default=1.0, help="weight of the loss on robustness (half the batch)")
    parser.add_argument("--fragile-from", type=int, default=16_000, help="step from which it is added")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--resume", action="store_true", help="go on from OUT's .state file")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    device = torch.device(args.device)
    faces = Faces(args.faces)
    network = StarGANNetwork(**NETWORK)
    start_as_identity(network)
    network.to(device)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    state_file, start, minutes = args.out.with_suffix(".state"), 0, 0.0
    if args.resume:
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        average = {k: v.to(device) for k, v in state["average"].items()}
        start, minutes = state["step"], state["minutes"]
        for _ in range(start):
            schedule.step()

    started = time.time()
    bar = tqdm(range(start, args.steps), mininterval=20, desc="training")
    running = None
    for step in bar:
        pixels, labels, truth = (x.to(device) for x in faces.batch(args.batch, generator))
        with torch.autocast(device.type, torch.bfloat16, enabled=step < 0.9 * args.steps):
            output = network(pixels, labels).float()
        loss = distance(output, truth, pixels)
        if step >= args.fragile_from:
            half = args.batch // 2
            with torch.autocast(device.type, torch.bfloat16, enabled=step < 0.9 * args.steps):
                short = robustness(network, pixels[:half], labels[:half], output[:half], generator)
            loss = loss + args.fragile * short
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.997, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in network.state_dict().items():
                average[k].lerp_(v, 1 - decay)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{running:.4f}")
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            spent = minutes + (time.time() - started) / 60
            done = {"step": step + 1, "minutes": round(spent, 1)}
            save(args.out, average, {**vars(args), "out": args.out.name, "resume": bool(args.resume), **done})
            state = {"network": network.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            state |= {"generator": generator.get_state(), **done}
            write_checkpoint(state_file, state)
    state_file.unlink()  # lies beside the file that is packaged


if __name__ == "__main__":
    main()
