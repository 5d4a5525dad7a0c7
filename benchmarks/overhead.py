"""What the algorithms cost beyond the network: `python -m benchmarks.overhead`.

Each figure is a ratio within one run, the median over repeats with its spread: GrIDPure over its bare batched
forwards, one PGD step over its bare batched forward and backward passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from antipure.cli.core_nodes import LoadImage
from antipure.methods.antipure import PRESETS, antipure_loss
from antipure.methods.attack import pgd
from antipure.methods.checkpoints import load_denoiser
from antipure.methods.pictures import grid_positions, random_positions, random_stream
from antipure.methods.purification import gridpure
from antipure.nodes.convert import from_image

REPEATS = 7


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(work: Callable[[], None], floor: Callable[[], None]) -> tuple[float, float, float]:
    """Median, smallest and largest of work/floor over interleaved repeats, after one warm-up of each."""
    work(), floor()
    ratios = sorted(seconds(work) / seconds(floor) for _ in range(REPEATS))
    return statistics.median(ratios), ratios[0], ratios[-1]


def main() -> None:
    denoiser = load_denoiser()
    tile = denoiser.tile
    picture, _ = from_image(LoadImage().load("astronaut.png")[0])
    h, w = picture.shape[-2:]
    print(f"{h}×{w} picture, {tile}-px tiles, {torch.get_num_threads()} threads, {denoiser.device}\n")
    print("| work | floor | ratio | smallest | largest |\n|---|---|--:|--:|--:|")

    n = len(grid_positions(h, w, tile, tile // 2)) + 1
    tiles = torch.rand(n, 3, tile, tile)

    def forwards() -> None:
        with torch.no_grad():
            for t in reversed(range(10)):
                for part in denoiser.batches(n, tile, tile):
                    x = tiles[part]
                    denoiser.predict_noise(x, torch.full((len(x),), t))

    result = ratio(lambda: gridpure(picture, denoiser, iterations=1), forwards)
    print(
        "| GrIDPure, 1 iteration | {} batched forwards × 10 | {:.3f} | {:.3f} | {:.3f} |".format(n, *result), flush=True
    )

    for name, passes in (("paper", 2), ("strong", PRESETS["strong"].unrolled_steps)):
        # The same offsets as the attack's steps draw, so that both sides see the same number of tiles.
        counts = [len(random_positions(h, w, tile, random_stream(0, step))) for step in range(3)]

        def floor(counts: list[int] = counts, passes: int = passes) -> None:
            for count in counts:
                for part in denoiser.batches(count, tile, tile, passes):
                    for _ in range(passes):
                        x = torch.rand(part.stop - part.start, 3, tile, tile, requires_grad=True)
                        denoiser.predict_noise(x, torch.full((len(x),), 5)).sum().backward()

        def work(name: str = name) -> None:
            pgd(picture, lambda clean: antipure_loss(denoiser, PRESETS[name], clean), steps=3)

        result = ratio(work, floor)
        label = f"| PGD, `{name}`, 3 steps | {passes} batched forward + backward passes a step |"
        print(label + " {:.3f} | {:.3f} | {:.3f} |".format(*result), flush=True)


if __name__ == "__main__":
    main()
