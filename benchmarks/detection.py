"""How easily protections are noticed: `python -m benchmarks.detection`.

A small network (`detector.py`) is trained on windows of the development pictures (the sets' development half, the
photographs of benchmarks/pictures that are in no half, scikit-image's), each protected by every version of --versions
in a few steps, and scored on windows of the held-out half: the area under its ROC curve, per version. 0.5: it cannot
tell; 1: always. One network learns all versions together; with --unseen, a network for each version that has seen all
others but not this one stands beside it.

What is not protected, in training and in the test alike: the clean window, the same as JPEG, and with Gaussian noise;
so noise as such or compression is no evidence. Intervals: 95 %, by bootstrap over the held-out pictures. Protected
windows are kept under --work. Same machine and settings: same figures.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.baselines import BASELINES
from antipure.methods.controls import CONTROLS
from antipure.methods.figures.text_table import text_table
from antipure.methods.pictures import from_uint8, random_stream
from antipure.methods.protections import apply_protection
from antipure.methods.purification.transforms import add_gaussian_noise, jpeg
from torch import Tensor

from . import sets
from .detector import Detector, bootstrap_auc, scores, train_detector
from .work import PICTURES, Clock, digest, kept, load_denoisers, machine, picture_digest, read, write

VERSIONS = ("random", "smooth", "paper", "unrolled", "strong", "strong_shaped")
IN_NO_HALF = ("acanthus", "allium", "alps", "boats", "sheep")
SCIKIT_IMAGE = ("camera", "coffee", "chelsea", "rocket", "brick", "grass", "coins", "page", "hubble_deep_field", "moon")
QUALITIES, NOISE_LEVELS = (60, 75, 85, 95), (2, 4, 8)
Scores = dict[str, np.ndarray]


def development() -> dict[str, Tensor]:
    """What the detector may learn from, 1×3×H×W in 0..1 by name."""
    from skimage import data

    found = {name: p.read() for name, p in sets.load().items() if p.half == "development"}
    found |= {name: read(PICTURES / f"{name}.png") for name in IN_NO_HALF}
    for name in SCIKIT_IMAGE:
        array = np.asarray(getattr(data, name)())
        found[name] = from_uint8(array if array.ndim == 3 else np.repeat(array[..., None], 3, 2))
    return found


def held_out() -> dict[str, Tensor]:
    """What it is tested on."""
    return {name: p.read() for name, p in sets.load().items() if p.half == "held_out"}


def windows(pictures: dict[str, Tensor], count: int, side: int, seed: int = 0) -> tuple[list[str], Tensor]:
    """`count` random windows of every picture: of which picture each is, and N×3×side×side."""
    names, found = [], []
    for number, (name, picture) in enumerate(pictures.items()):
        generator = random_stream(seed, number)
        for _ in range(count):
            top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in picture.shape[-2:])
            names.append(name)
            found.append(picture[..., top : top + side, left : left + side])
    return names, torch.cat(found)


def unprotected(clean: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Windows N×3×H×W as they are, as JPEG of several qualities, and with noise of several strengths."""
    generator = random_stream(seed, 2)

    def drawn(values: tuple[int, ...]) -> list[int]:
        return [values[int(torch.randint(len(values), (), generator=generator))] for _ in clean]

    compressed = [jpeg(one[None], quality) for one, quality in zip(clean, drawn(QUALITIES), strict=True)]
    levels = enumerate(drawn(NOISE_LEVELS))
    noisy = [add_gaussian_noise(clean[i : i + 1], level, seed, i) for i, level in levels]
    return {"clean": clean, "JPEG": torch.cat(compressed), "noise": torch.cat(noisy)}


def protected(clean: Tensor, version: str, levels: float, steps: int, work: Path, clock: Clock, seed: int) -> Tensor:
    """Every window under a protection, with a seed of its own."""
    results = []
    denoiser = load_denoisers()["bundled"]
    for i, one in enumerate(clean.split(1)):
        settings = AttackSettings(levels, steps, seeds=seed + i)
        key = digest(picture_digest(one), version, repr(PRESETS.get(version)), levels, steps, seed + i)
        path, began = work / "windows" / f"{version}-{key}.png", time.time()
        there = path.is_file()
        kept(path, partial(apply_protection, version, one, denoiser, settings))
        clock.done(version, f"window {i + 1} of {len(clean)}", None if there else time.time() - began)
        results.append(read(path))
    return torch.cat(results)


def rated(detector: Detector, others: dict[str, Tensor], shown: dict[str, Tensor]) -> Scores:
    return {name: scores(detector, pictures) for name, pictures in {**others, **shown}.items()}


def figures(rates: Scores, version: str, names: list[str]) -> dict[str, list[float]]:
    """AUC with its interval, against clean windows and against all that are not protected."""
    others = np.stack([rates[kind] for kind in ("clean", "JPEG", "noise")])
    return {
        "clean": list(bootstrap_auc(rates[version], rates["clean"], names)),
        "all": list(bootstrap_auc(rates[version], others, names)),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), choices=[*CONTROLS, *BASELINES, *PRESETS])
    parser.add_argument("--levels", type=float, default=8, help="budget of every protection")
    parser.add_argument("--protection-steps", type=int, default=10)
    parser.add_argument("--windows", type=int, default=2, help="of each development picture")
    parser.add_argument("--test-windows", type=int, default=3, help="of each held-out picture")
    parser.add_argument("--side", type=int, default=64, help="of a window in pixels, at most 128")
    parser.add_argument("--steps", type=int, default=600, help="of the detector's training")
    parser.add_argument("--unseen", action="store_true", help="also detectors that have not seen the version they rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("detection-work"), help="folder for protected windows")
    parser.add_argument("--out", type=Path, help="write all figures there, too, as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    began, learned, tested = time.time(), development(), held_out()
    _, clean = windows(learned, args.windows, args.side, args.seed)
    names, test = windows(tested, args.test_windows, args.side, args.seed + 1)
    clock = Clock(Counter({version: len(clean) + len(test) for version in args.versions}))
    common = (args.levels, args.protection_steps, args.work, clock)
    train = {v: protected(clean, v, *common, seed=args.seed) for v in args.versions}
    shown = {v: protected(test, v, *common, seed=args.seed + 1_000_000) for v in args.versions}
    others, test_others = unprotected(clean, args.seed), unprotected(test, args.seed + 1)
    settings = {"steps": args.steps, "seed": args.seed}
    rates = rated(train_detector(others, train, **settings), test_others, shown)
    found: dict[str, dict[str, list[float]]] = {v: figures(rates, v, names) for v in args.versions}
    if args.unseen and len(args.versions) > 1:
        for version in args.versions:
            rest = {name: x for name, x in train.items() if name != version}
            stranger = rated(train_detector(others, rest, **settings), test_others, {version: shown[version]})
            found[version]["unseen, all"] = figures(stranger, version, names)["all"]
    head = (
        f"{machine()}. {args.levels:g} levels, {args.protection_steps} PGD steps; trained on {len(clean)} windows of "
        f"{len(learned)} pictures, {args.side} px, {args.steps} steps; tested on {len(test)} windows of {len(tested)} "
        f"held-out pictures; {(time.time() - began) / 60:.0f} min."
    )
    columns = {"clean": "AUC against clean", "all": "against clean, JPEG, noise", "unseen, all": "same, never seen"}
    columns = {key: title for key, title in columns.items() if key in next(iter(found.values()))}
    rows = [[v, *("{:.2f} ({:.2f}-{:.2f})".format(*found[v][key]) for key in columns)] for v in args.versions]
    text = f"{head}\n\n{text_table(('version', *columns.values()), rows)}"
    print(f"\n{text}")
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.out:
        write(args.out, {"settings": head, "auc": found})


if __name__ == "__main__":
    main()
