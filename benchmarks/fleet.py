"""What many pictures cost beyond the method: `python -m benchmarks.fleet [workers] [overhead] [memory] [together]`.

workers: pictures a second of two worker processes over those of one, a thread each, run in turn. overhead: what
reading, checking, measuring, writing and noting down add to the bare method, in turn on the same pictures. memory: what
the process holds while it protects a thousand small pictures. Where other work disturbs the clock, processor time is
measured. `python -m benchmarks.fleet_cluster` has the kills on a Ray cluster.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from antipure.cli.main import main as command
from antipure.cli.pictures import read_picture
from antipure.cli.portfolio.manifest import NAME, Manifest
from antipure.cli.portfolio.plan import Job
from antipure.cli.portfolio.processes import run_here, run_processes
from antipure.cli.portfolio.run import _line, _store
from antipure.cli.portfolio.work import Setup
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.diffusion.checkpoints import BUNDLED, load_denoiser
from antipure.methods.pictures import from_uint8
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purify import purify
from PIL import Image

from .work import machine

FACE = BUNDLED.with_name("astronaut_face.png")
LEVELS = 8
EVERY = 100  # pictures between looks at the memory


def make_pictures(folder: Path, count: int, side: int) -> list[Job]:
    """So many different crops of the bundled photo, turned where the crops repeat."""
    face = Image.open(FACE).convert("RGB")
    room = face.width - side + 1
    jobs = []
    for i in range(count):
        x, y = i % room, i // room % room
        path = folder / f"{i:05}.png"
        face.rotate(90 * (i // room**2 % 4)).crop((x, y, x + side, y + side)).save(path)
        jobs.append(Job("protect", path.name, str(path), (), path.stem))
    return jobs


def setup_of(preset: str, steps: int) -> Setup:
    settings = {"preset": preset, "steps": steps, "levels": LEVELS, "denoiser": "bundled", "precision": "fp32"}
    return Setup("protect", settings | {"seed": 0, "vaes": [], "visibility": "full"}, threads=1)


def workers(args: argparse.Namespace) -> Iterator[str]:
    """From each worker's first finished picture on: loading torch and the model counts for nothing."""
    setup = setup_of(args.preset, args.steps)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        jobs = make_pictures(Path(place), args.count, args.side)
        for _ in range(args.rounds):
            for number in rates:
                times = []
                for outcome in run_processes(setup, jobs, number, lambda picture, share: None):
                    assert outcome.error is None, outcome.error
                    times.append(time.monotonic())
                rates[number].append((len(times) - number) / (times[-1] - times[number - 1]))
    for number in rates:
        yield f"{number} worker(s): {median(rates[number]):.3f} pictures/s (each run: {_shown(rates[number])})"
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    yield f"2 workers over 1: {median(ratios):.2f} x by the clock (each pair: {_shown(ratios)})"


def overhead(args: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(1)
    setup, bare, whole = setup_of(args.preset, args.steps), [], []
    settings = AttackSettings(LEVELS, args.steps, None, 0)
    denoiser = load_denoiser(BUNDLED)
    with tempfile.TemporaryDirectory() as place, Manifest(Path(place, "out", NAME)) as manifest:
        jobs = make_pictures(Path(place), args.count + 1, args.side)
        manifest.begin([job.key for job in jobs], [job.output for job in jobs])
        outcomes = run_here(setup, jobs, lambda picture, share: None)
        for i, job in enumerate(jobs):
            picture = from_uint8(read_picture(Path(job.source))[0])
            began = time.process_time()
            with denoiser.session():
                apply_protection(args.preset, picture, denoiser, replace(settings))
            middle = time.process_time()
            outcome = next(outcomes)
            outputs = _store(outcome, str(Path(place, "out")), set())
            manifest.append(_line(outcome, outputs, {"seed": 0}, str(Path(place, "out"))))
            if i:  # the first one loads the model
                bare.append(middle - began)
                whole.append(time.process_time() - middle)
    ratios = [b / a for a, b in zip(bare, whole, strict=True)]
    yield f"bare method: {median(bare):.3f} s of processor time a picture; in a run: {median(whole):.3f} s"
    added = median(b - a for a, b in zip(bare, whole, strict=True))
    pairs = f"median of pairs {median(ratios) - 1:+.2%}, {added * 1000:+.0f} ms"
    yield f"overhead: {sum(whole) / sum(bare) - 1:+.2%} ({pairs})"


def memory(args: argparse.Namespace) -> Iterator[str]:
    """The whole command, as users run it, looked at from inside."""
    held: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "in")
        folder.mkdir()
        make_pictures(folder, args.many, 64)
        append, seen = Manifest.append, [0]

        def counted(self: Manifest, line: dict) -> None:
            append(self, line)
            seen[0] += 1
            if seen[0] % EVERY == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                held.append(pages * resource.getpagesize() / 2**20)

        Manifest.append = counted  # type: ignore[method-assign]
        try:
            arguments = [
                "protect",
                str(folder),
                "--out",
                str(Path(place, "out")),
                "--preset",
                "random",
                "--threads",
                "1",
            ]
            assert command(arguments) == 0
        finally:
            Manifest.append = append  # type: ignore[method-assign]
    yield f"MiB after every {EVERY} of {args.many} pictures: {', '.join(f'{value:.0f}' for value in held)}"
    yield f"from {EVERY} to {args.many}: {held[-1] - held[0]:+.1f} MiB ({held[-1] / held[0] - 1:+.2%})"


def together(args: argparse.Namespace) -> Iterator[str]:
    """Whether pictures of one size are purified faster as a batch. Protections are loops of their own anyway."""
    torch.set_num_threads(1)
    denoiser, alone, batch, size = load_denoiser(BUNDLED), [], [], 4
    with tempfile.TemporaryDirectory() as place:
        jobs = make_pictures(Path(place), size, args.side)
        pictures = torch.cat([from_uint8(read_picture(Path(job.source))[0]) for job in jobs])
    settings = {"timestep": 4, "iterations": 2, "gamma": 0.1, "seed": 0}
    with torch.no_grad(), denoiser.session():
        for turn in range(args.rounds + 1):
            began = time.process_time()
            singles = torch.cat([purify("gridpure", picture[None], denoiser, **settings) for picture in pictures])
            middle = time.process_time()
            same = torch.equal(purify("gridpure", pictures, denoiser, **settings), singles)
            if turn:
                alone.append(middle - began)
                batch.append(time.process_time() - middle)
    ratios = [one / many for one, many in zip(alone, batch, strict=True)]
    told = "the same bytes" if same else "other bytes"
    yield f"{size} pictures as one batch: {median(ratios):.2f} x as fast as one by one ({_shown(ratios)}), {told}"


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


PARTS = {"workers": workers, "overhead": overhead, "memory": memory, "together": together}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which (default: all)")
    parser.add_argument("--preset", default="strong")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, default=64, help="pixels (default 64)")
    parser.add_argument("--count", type=int, default=12, help="pictures of workers and overhead (default 12)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs of workers (default 3)")
    parser.add_argument("--many", type=int, default=1000, help="pictures of memory (default 1000)")
    args = parser.parse_args()
    print(f"{machine()}; {args.preset}, {args.steps} steps, {args.side} px")
    for name in args.parts or PARTS:
        for line in PARTS[name](args):
            print(line, flush=True)


if __name__ == "__main__":
    main()
