"""What the demo latent model draws, beside the training pictures that come nearest: docs/demo_model.jpg.

    python -m tools.demo_sheet --files bundled/demo --drawn folder/pool --out docs/demo_model.jpg

Rows: drawn by class alone (CFG 3, the first seeds, none left out), and below each the nearest picture of the pool; the
same for persons known by name, whose own portraits are in the third row of the second half. Nearest: least mean square
difference of pictures averaged over 8×8, mirrored ones too. Prints how near that is, and how near portraits of persons
never drawn for training come to the same pool: a memory would come nearer than those do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tools.latent_networks import CHANNELS, Autoencoder, Conditions, MMDiT
from tools.latent_pool import HELD_OUT, SIZES, read_pool
from tools.latent_training import read_autoencoder, read_model
from tools.portraits import SLOTS, draw_portraits
from tools.train_latent_model import sample

COLUMNS, STEPS, GUIDANCE = 12, 20, 3.0


def nearest(pictures: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """For pictures N×3×H×W and a pool M×3×H×W in 0..1: indices into the pool, and root mean square differences."""
    small = F.avg_pool2d(pictures, 8).flatten(1)
    known = F.avg_pool2d(pool, 8)
    distances = torch.stack([torch.cdist(small, k.flatten(1)) for k in (known, known.flip(3))]).amin(0)
    least = distances.min(1)
    return least.indices, least.values / small.shape[1] ** 0.5


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, default=Path("bundled/demo"))
    parser.add_argument("--drawn", type=Path, required=True, help="folder of tools.draw_pool")
    parser.add_argument("--out", type=Path, default=Path("docs/demo_model.jpg"))
    parser.add_argument("--held-out", type=int, default=24, help="portraits of strangers to compare distances with")
    args = parser.parse_args()
    both, network = nn.ModuleDict({"model": MMDiT(), "conditions": Conditions(SIZES)}), Autoencoder().eval()
    read_autoencoder(args.files, network)
    read_model(args.files, both["model"], both["conditions"])
    pool, labels = read_pool(args.drawn)
    pictures = pool.float() / 255

    asked = torch.zeros(2, COLUMNS, len(SIZES), dtype=torch.long)
    asked[0, :, 1] = 1 + torch.arange(COLUMNS) % (len(SLOTS["style"]) - 2)  # every style but painted
    for i, slot in enumerate(("hair colour", "haircut", "beard")):  # some details, all combinations by turns
        asked[0, :, 1 + list(SLOTS).index(slot)] = 1 + (torch.arange(COLUMNS) * (i + 2) + i) % (len(SLOTS[slot]) - 1)
    asked[1, :, 0] = 1 + torch.arange(COLUMNS) // 2
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, COLUMNS, CHANNELS, 16, 16, generator=generator)
    drawn = [network.decode(sample(both, a, GUIDANCE, STEPS, z)).clamp(0, 1) for a, z in zip(asked, noise, strict=True)]
    rows = []
    for i, found in enumerate(drawn):
        index, distance = nearest(found, pictures)
        rows += [found, pictures[index]]
        print(f"row {i}: nearest training picture at {distance.mean():.3f} (least {distance.min():.3f})")
    own = [(labels[:, 0] == int(who)).nonzero()[:, 0] for who in asked[1, :, 0]]
    rows.append(pictures[torch.stack([at[min(i % 2 * 5, len(at) - 1)] for i, at in enumerate(own)])])
    real = draw_portraits(range(HELD_OUT, HELD_OUT + args.held_out), range(args.held_out), supersampling=1).pictures
    _, distance = nearest(real, pictures)
    print(f"persons never drawn for training: {distance.mean():.3f} (least {distance.min():.3f})")
    back = network.decode(network.encode(real)).clamp(0, 1)
    print(f"round trip of those: {-10 * (back - real).square().mean().log10():.2f} dB")

    sheet = torch.stack(rows).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(args.out, quality=88)


if __name__ == "__main__":
    main()
