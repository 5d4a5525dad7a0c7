"""What the steps of a protection cost by the picture's size: `python -m benchmarks.cost --sides 256 512 1024`.

A preset against what the table has it made against (`protection_run.target_of`), on a development photograph enlarged
to each side. Processor seconds count every thread, so they hold on a busy machine, too; wall seconds do not. Minutes
for all the steps asked for are those of the processor over --cores, as if they shared the work evenly: less than anyone
gets. The steps measured come after one that is not (caches, first memory).
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.settings import AttackSettings

from . import sets
from .protection_run import target_of
from .work import machine


def seconds(preset: str, side: int, steps: int) -> tuple[float, float]:
    """Processor and wall seconds of a run with so many steps, all of which are run."""
    picture = F.interpolate(sets.load()["whole_astronaut"].read(), size=(side, side), mode="bicubic").clamp(0, 1)
    processor, wall = time.process_time(), time.monotonic()
    protect(picture, target_of(preset), PRESETS[preset], AttackSettings(8, steps, seeds=3))
    return time.process_time() - processor, time.monotonic() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--preset", default="robust", choices=PRESETS)
    parser.add_argument("--steps", type=int, default=40, help="that the minutes are for")
    parser.add_argument("--measured", type=int, default=4, help="steps that are run")
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    print(f"{args.preset}, {machine()}, {torch.get_num_threads()} threads\n")
    print(f"| side | processor s a step | wall s a step | {args.steps} steps on {args.cores} cores, min |")
    print("|--:|--:|--:|--:|")
    for side in args.sides:
        first = seconds(args.preset, side, 1)
        more = seconds(args.preset, side, 1 + args.measured)
        processor, wall = ((b - a) / args.measured for a, b in zip(first, more, strict=True))
        minutes = (first[0] + (args.steps - 1) * processor) / args.cores / 60
        print(f"| {side} | {processor:.2f} | {wall:.2f} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
