"""What protections of a picture are worth: every protection × every purifier, beside its controls.

Pure(protected) is compared with Pure(clean), same purifier and same noise: structural distortion and detail ratio
(see metrics). A distortion says nothing alone, so each protection stands beside controls of its own largest level:

* spectrum-matched noise: the perturbation with random phases (controls.spectrum_matched);
* random sign noise of that level on every pixel. It has the protection's energy or more, so that
  the ratio to it does not flatter; of equal energy is the first control;
* the picture blurred as far as that level reaches (`controls.smooth`): what is gained by taking detail away alone.

The figure to read is the ratio of the distortion to that of the spectrum-matched control. The blur judges nothing: it
says how much of a distortion need not be owed to any attack, which only customization can tell apart. A transform
without a diffusion model removes little, of the protection or of the noise: its ratio lies near 1 whatever a purifier
behind it would do. So transforms alone are measured, and judge nothing while a purifier was measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks.settings import AttackSettings
from ..controls import apply_control, spectrum_matched
from ..diffusion.autoencoder import Autoencoder
from ..errors import AntiPureError
from ..metrics import image as metrics
from ..metrics import visibility
from ..metrics.latent import latent_shift
from ..pictures import center_crop, check_picture, round_8bit
from ..progress import Progress, part, silent
from ..purification.purifiers import Purifier
from .report import CLEAN, CONTROL_TITLES, MATCHED, PROTECTION, RANDOM, SMOOTH, Cell, Column, Looks, Report, Row

CURVE = (1, 2, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200)
Version = tuple[str, str]  # kind and protection of a row


@torch.no_grad()
def measure(
    picture: Tensor,
    protections: Mapping[str, Tensor],
    purifiers: Sequence[Purifier],
    *,
    seeds: Sequence[int] = (0,),
    curve_iterations: int = 0,
    made_against: Sequence[str] = (),
    example: int = 0,
    autoencoders: Mapping[str, Autoencoder] | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure protections of pictures.

    picture: B×3×H×W in 0..1, the originals. protections: the same pictures protected, by name. purifiers: of
    `purifiers.parse_purifiers`; their own seeds are replaced by `seeds`, from which the controls are drawn, too.
    curve_iterations: a curve over 1, 2, 5, 10, ... iterations of the first GrIDPure alone, up to this number; 0, or no
    such purifier: no curve. It costs only the iterations that no listed purifier runs anyway. made_against: texts of
    purifiers the protections were made against. example: the picture whose middle is kept.
    autoencoders: VAEs by name, through which the latent shift of every version is measured, as it is and purified.
    Purifiers that leave pictures at another size are compared with what their view makes of the original.
    Raises `AntiPureError`, before work, for pictures that do not fit each other, repeated seeds, no purifier, and names
    of `made_against` that are not measured.
    """
    _check(picture, protections, purifiers, seeds, curve_iterations, made_against, example)
    clean = round_8bit(picture)
    protected = {name: round_8bit(value) for name, value in protections.items()}
    vaes = dict(autoencoders or {})
    runs, curve_of, iterations = _plan(purifiers, curve_iterations)
    versions = 1 + (1 + len(CONTROL_TITLES)) * len(protected)
    ledger = _Ledger(progress, len(clean) * len(seeds) * versions * sum(run.cost for run in runs))
    rows: list[Row] = []
    examples: dict[tuple[str, str], Tensor] = {}
    for index in range(len(clean)):
        original = clean[index : index + 1]
        collected: dict[Version, _Collected] = {}
        for seed in seeds:
            keep = examples if index == example and seed == seeds[0] else {}
            pictures = _versions(original, {name: value[index : index + 1] for name, value in protected.items()}, seed)
            for key, value in pictures.items():
                found = collected.setdefault(key, _Collected(original, value, len(purifiers), iterations))
                found.latent.append(_shifts(vaes, original, value))
                if key[0] in _SHOWN:
                    keep["", key[1]] = center_crop(value)
            for run in runs:
                base: dict[int, Tensor] = {}
                seen = round_8bit(run.purifier.with_seed(seed).view(original))
                for keys, pure in _purified(run, seed, pictures, ledger):
                    base = base or pure  # the clean picture comes first
                    for tap, value in pure.items():
                        places = run.columns.get(tap, ())
                        values = _measured(seen, base[tap], value, vaes) if places else ()
                        for key, place in itertools.product(keys, places):
                            collected[key].cells[place].append(values)
                            if key[0] in _SHOWN:
                                keep[str(purifiers[place]), key[1]] = center_crop(value)
                        if run.curve and tap in iterations:
                            distortion = float(metrics.structural_distortion(base[tap], value)[0])
                            for key in keys:
                                collected[key].curve[tap].append(distortion)
        rows += [version.row(index, *key) for key, version in collected.items()]
    columns = tuple(_column(purifier, made_against) for purifier in purifiers)
    size = (clean.shape[-2], clean.shape[-1])
    return Report(
        tuple(protected), columns, tuple(seeds), size, tuple(rows), curve_of, iterations, example, examples, tuple(vaes)
    )


_SHOWN = (CLEAN, PROTECTION)


def _check(picture, protections, purifiers, seeds, curve_iterations, made_against, example) -> None:
    check_picture(picture, "original")
    if not protections:
        raise AntiPureError("No protected picture is given; give at least one.")
    for name, value in protections.items():
        check_picture(value, f"picture '{name}'")
        if value.shape != picture.shape:
            sizes = [f"{len(x)} of {x.shape[-1]}×{x.shape[-2]}" for x in (value, picture)]
            raise AntiPureError(f"'{name}' does not fit the originals: {sizes[0]} against {sizes[1]}; give equal ones.")
    if not purifiers:
        raise AntiPureError("No purifier or transform is named; give at least one, such as gridpure10.")
    if not seeds or len(set(seeds)) != len(seeds):
        raise AntiPureError("The purifier's seeds must be at least one, each once.")
    if curve_iterations < 0:
        raise AntiPureError(f"The curve is to have {curve_iterations} iterations; give 0 for none, or more.")
    if not 0 <= example < len(picture):
        raise AntiPureError(f"There is no picture {example + 1} to show; there are {len(picture)}.")
    check_made_against(made_against, [str(purifier) for purifier in purifiers])


def check_made_against(made_against: Sequence[str], names: Sequence[str]) -> None:
    """Raise `AntiPureError` unless every name is among `names`, those of the measured purifiers."""
    if unknown := [name for name in made_against if name not in names]:
        raise AntiPureError(f"'{unknown[0]}' is not among the measured purifiers; those are {', '.join(names)}.")


def _column(purifier: Purifier, made_against: Sequence[str]) -> Column:
    names = {purifier.denoiser_of(step).name for step in purifier.purifications} - {""}
    told = str(purifier) in made_against if made_against else None
    return Column(str(purifier), not purifier.is_transform, " and ".join(sorted(names)), told, purifier.changes_size)


@dataclass(frozen=True)
class _Run:
    """A purifier to run once for all that its one run answers.

    columns: places of the listed purifiers by the number of iterations after which they are read; 0 for the end.
    curve: whether the curve is read from it, too. cost: denoising steps, roughly.
    """

    purifier: Purifier
    columns: dict[int, list[int]]
    taps: frozenset[int]
    curve: bool = False

    @property
    def cost(self) -> int:
        steps = self.purifier.purifications
        return max(1, sum(s.timestep * (s.value if s.method == "gridpure" else 1) for s in steps))


def _plan(purifiers: Sequence[Purifier], curve_iterations: int) -> tuple[list[_Run], str, tuple[int, ...]]:
    """Runs, what the curve is of, and its iterations. GrIDPures that differ in iterations alone are one run: its noise
    belongs to the iteration, so a longer run passes through the result of the shorter one."""
    runs: list[_Run] = []
    families: dict[str, list[tuple[int, int]]] = {}  # place and iterations of each member
    for place, purifier in enumerate(purifiers):
        if purifier.iterations is None:
            runs.append(_Run(purifier, {0: [place]}, frozenset()))
        else:
            families.setdefault(str(purifier.with_iterations(1)), []).append((place, purifier.iterations))
    iterations: tuple[int, ...] = ()
    if families and curve_iterations:
        iterations = (*(i for i in CURVE if i < curve_iterations), curve_iterations)
    curve_of = next(iter(families)).replace("gridpure1", "gridpure") if iterations else ""
    for number, members in enumerate(families.values()):
        columns: dict[int, list[int]] = {}
        for place, count in members:
            columns.setdefault(count, []).append(place)
        curve = number == 0 and bool(iterations)
        taps = frozenset((*columns, *(iterations if curve else ())))
        longest = purifiers[members[0][0]].with_iterations(max(taps))
        runs.append(_Run(longest, columns, taps, curve))
    return runs, curve_of, iterations


class _Collected:
    """What is measured of one version of a picture, seed by seed."""

    def __init__(self, original: Tensor, version: Tensor, purifiers: int, iterations: tuple[int, ...]):
        measures = (metrics.psnr, metrics.ssim, metrics.linf_levels)
        self.psnr, self.ssim, self.levels = (float(measure(original, version)[0]) for measure in measures)
        peak = visibility.peak_share(version - original)
        seen = (*visibility.ciede2000(original, version), *visibility.seen_rms(original, version))
        self.looks = Looks(*(float(value[0]) for value in (peak, *seen)))
        self.cells: list[list[tuple]] = [[] for _ in range(purifiers)]  # `_measured`, one a seed
        self.latent: list[tuple[float, ...]] = []
        self.curve: dict[int, list[float]] = {iteration: [] for iteration in iterations}

    def row(self, picture: int, kind: str, protection: str) -> Row:
        cells = []
        for seeds in self.cells:
            distortion, detail, psnr, latent = zip(*seeds, strict=True)
            cells.append(Cell(distortion, detail, psnr, tuple(zip(*latent, strict=True))))
        curve = tuple(sum(values) / len(values) for values in self.curve.values())
        latent = tuple(zip(*self.latent, strict=True))
        return Row(
            picture, kind, protection, self.psnr, self.ssim, self.levels, tuple(cells), curve, self.looks, latent
        )


def _measured(seen: Tensor, base: Tensor, pure: Tensor, vaes: Mapping[str, Autoencoder]) -> tuple:
    """Distortion, detail, PSNR and latent shifts of one purified picture."""
    compared = (metrics.structural_distortion(base, pure), metrics.detail_ratio(base, pure), metrics.psnr(seen, pure))
    return (*(float(value[0]) for value in compared), _shifts(vaes, base, pure))


def _shifts(vaes: Mapping[str, Autoencoder], reference: Tensor, picture: Tensor) -> tuple[float, ...]:
    return tuple(float(latent_shift(reference, picture, vae, draws=1).value[0]) for vae in vaes.values())


def _versions(original: Tensor, protected: dict[str, Tensor], seed: int) -> dict[Version, Tensor]:
    """The clean picture, the protections and their controls of the same largest level, by (kind, protection)."""
    versions = {(CLEAN, ""): original}
    for name, value in protected.items():
        levels = float(metrics.linf_levels(original, value)[0])
        matched = spectrum_matched(original, value, levels=levels, seed=seed) if levels else original
        settings = AttackSettings(levels, seeds=seed)
        random, smooth = (
            apply_control(control, original, settings) if levels else original for control in ("random", "smooth")
        )
        kinds = {PROTECTION: value, MATCHED: matched, RANDOM: random, SMOOTH: smooth}
        versions |= {(kind, name): version for kind, version in kinds.items()}
    return versions


def _purified(
    run: _Run, seed: int, pictures: dict[Version, Tensor], ledger: _Ledger
) -> Iterator[tuple[list[Version], dict[int, Tensor]]]:
    """One picture after the other purified, the clean one first: which versions it is, and it after every tap."""
    purifier = run.purifier.with_seed(seed)
    equal: list[list[Version]] = []  # equal pictures are purified once
    for key, picture in pictures.items():
        group = next((keys for keys in equal if torch.equal(pictures[keys[0]], picture)), None)
        if group is None:
            equal.append([key])
        else:
            group.append(key)
    with purifier.session():
        for keys in equal:
            yield keys, _tapped(purifier, run, pictures[keys[0]], ledger)
            ledger.finish(len(keys) * run.cost)


def _tapped(purifier: Purifier, run: _Run, picture: Tensor, ledger: _Ledger) -> dict[int, Tensor]:
    """The picture after each of the run's taps; {0: ...} for a run that is read at its end."""
    report = ledger.part(run.cost)
    return purifier.after_iterations(picture, run.taps, report) if run.taps else {0: purifier(picture, report)}


class _Ledger:
    """One progress over all runs."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def part(self, cost: int) -> Progress:
        """The progress of a run of this cost."""
        return part(self.progress, self.done, cost, self.total)

    def finish(self, cost: int) -> None:
        """A run has ended."""
        self.done += cost
        self.progress(self.done, self.total)
