"""How the bundled toy generator edits held-out faces, and how easily it is disrupted: `python -m benchmarks.generator`.

Per edit: the mean distance (L1, in 8-bit levels, over the pixels that truly change) from the picture and from the
output to the truth, the same face drawn with the other attributes; then the share of outputs whose masked L2 to the
undisturbed output exceeds 0.05, for Disrupting made for that edit, for it after JPEG 75, for random signs of the same
size, and for JPEG 75 alone. Faces that have the wanted attribute already are left out: nothing is edited there.
Glasses that are put on have one frame for all (`procedural_faces.GIVEN_FRAME`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.figures.text_table import text_table
from antipure.methods.generators import load_generator
from antipure.methods.generators.procedural_faces import HELD_OUT, draw_edited, draw_faces
from antipure.methods.lora_patching.defence_metrics import masked_l2, success_rate
from antipure.methods.lora_patching.disrupting import LEVELS, disrupt
from antipure.methods.pictures import round_8bit, to_uint8
from antipure.methods.purification.transforms import jpeg
from PIL import Image
from torch import Tensor


def sheet(rows: list[Tensor], path: Path, columns: int = 8) -> None:
    """Write pictures (rows of B×3×H×W in 0..1), two pixels for one."""
    grid = torch.cat([torch.cat(list(row[:columns]), -1) for row in rows], -2)
    picture = Image.fromarray(to_uint8(grid[None])[0])
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path)


def distance(other: Tensor, truth: Tensor, picture: Tensor) -> float:
    """L1 in 8-bit levels to the truth over the pixels that the edit truly changes; all N×3×H×W in 0..1."""
    changes = (truth - picture).abs().sum(1, keepdim=True) > 0.05
    return 255 * float(((other - truth).abs() * changes).sum() / (3 * changes.sum()))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", help="another checkpoint of the toy's edits (default: the bundled one)")
    parser.add_argument("--faces", type=int, default=50)
    parser.add_argument(
        "--sheet", type=Path, help="write pictures: per edit the output, the truth, the disrupted output"
    )
    args = parser.parse_args()
    generator = load_generator(args.generator)
    seeds = range(HELD_OUT, HELD_OUT + args.faces)
    picture = round_8bit(draw_faces(seeds))

    def output(other: Tensor, edit: str) -> Tensor:
        return torch.cat([generator.edit(one[None] * 2 - 1, edit) for one in other])

    print(f"{generator.parameters / 1e6:.2f} M parameters, {args.faces} held-out faces, {LEVELS:g} levels\n")
    head = ("edit", "faces", "L1 before", "L1 after", "Disrupting", "+ JPEG 75", "random", "JPEG 75 alone")
    rows, lines, values = [picture], [], {}
    for edit in generator.edits:
        truth = draw_edited(seeds, edit)
        plain = output(picture, edit)
        changes = (truth - picture).abs().sum(1, keepdim=True) > 0.05
        needed = changes.flatten(1).any(1)
        protected = disrupt(generator, picture, [edit])
        others = {
            "Disrupting": protected,
            "JPEG": jpeg(protected, 75),
            "random": apply_control("random", picture, AttackSettings(levels=LEVELS)),
            "JPEG alone": jpeg(picture, 75),
        }
        shares = []
        for name, other in others.items():
            l2 = masked_l2(output(other, edit), plain, picture * 2 - 1)[needed]
            values.setdefault(name, []).append(l2)
            shares.append(success_rate(l2))
        l1 = [distance(x[needed], truth[needed], picture[needed]) for x in (picture, (plain + 1) / 2)]
        lines.append([edit, str(int(needed.sum())), *(f"{v:.1f}" for v in l1), *(f"{share:.0%}" for share in shares)])
        rows += [(plain + 1) / 2, truth, (output(protected, edit) + 1) / 2]
    rates = {name: success_rate(torch.cat(v)) for name, v in values.items()}
    means = {name: float(torch.cat(v).nanmean()) for name, v in values.items()}
    lines.append(["all", "", "", "", *(f"{rate:.1%}" for rate in rates.values())])
    lines.append(["mean masked L2", "", "", "", *(f"{mean:.3f}" for mean in means.values())])
    print(text_table(head, lines))
    if args.sheet:
        sheet(rows, args.sheet)


if __name__ == "__main__":
    main()
