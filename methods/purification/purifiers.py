"""One list of everything a protection may have to survive: purifiers and transforms, named by text.

"gridpure20" runs 20 GrIDPure iterations, "gridpure20@30" at timestep 30; "diffpure100" noises to timestep 100 at the
picture's own size, "diffpure_resized100" at the model's; "/5" behind one of these runs the network at 5 of the
timesteps only, "diffpure100/5", "gridpure10/5", "gridpure20@30/5". "vae" goes through the VAE of the first denoiser
where it has one, else through the first VAE given; "impress100" runs 100 steps of IMPRESS over a VAE; "upscale"
enlarges with an upscaler and averages back, "upscale8" at least 8 times. Every name of `transforms.TRANSFORMS` stands
for itself. Steps are joined by "+" and run from left to right: "jpeg75+resize0.5+gridpure10", "noise8+upscale". A
network's name in front, "held_out:gridpure10", "sdxl:vae", picks it among several.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

from torch import Tensor

from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import check_shape, round_8bit
from ..progress import Progress, part, silent
from .purify import METHODS, purify
from .restorations import DEFAULTS as RESTORATIONS
from .restorations import Restoration, parse_restoration
from .settings import check_purifier
from .transforms import TRANSFORMS, Transform, parse_transform
from .upscaling import Upscaler

GRIDPURE_TIMESTEP = 10
# The value a method has when none is written: iterations, timestep, timestep, round trips.
DEFAULTS = dict(zip(METHODS, (20, 100, 100, 1), strict=True))


@dataclass(frozen=True)
class Purification:
    """One purifier with its denoiser.

    method: of `purification.METHODS`. denoiser: its name, "" for the only or first one.
    substeps: at how many of the timesteps the network runs, 0: at all.
    """

    method: str
    value: int
    timestep: int
    denoiser: str = ""
    substeps: int = 0

    def __str__(self) -> str:
        at = f"@{self.timestep}" if self.method == "gridpure" and self.timestep != GRIDPURE_TIMESTEP else ""
        at += f"/{self.substeps}" if self.substeps else ""
        return (f"{self.denoiser}:" if self.denoiser else "") + f"{self.method}{self.value}{at}"

    @property
    def iterations(self) -> int:
        """How often it is repeated."""
        return self.value if self.method in ("gridpure", "vae") else 1

    @property
    def cost(self) -> int:
        """Passes through the network for each tile."""
        return (self.substeps or self.timestep) * self.iterations

    def check(self, denoiser: Denoiser) -> None:
        """Raise `AntiPureError` for settings that make no sense with this denoiser."""
        check_purifier(denoiser, self.timestep, self.iterations, substeps=self.substeps)
        if self.method == "vae" and not denoiser.latent:
            raise AntiPureError(f"'{self}' needs a denoiser with a VAE; this one works on pixels.")
        if self.method == "diffpure_resized" and denoiser.tile is None:
            raise AntiPureError(f"'{self}' needs a denoiser with a native size; take 'diffpure{self.value}' instead.")

    def run(self, picture: Tensor, denoiser: Denoiser, seed: int, progress: Progress) -> Tensor:
        """B×3×H×W in 0..1 purified, 8-bit rounded, on the device the picture came from."""
        settings = {"timestep": self.timestep, "iterations": self.iterations, "substeps": self.substeps, "seed": seed}
        pure = purify(self.method, picture.to(denoiser.device), denoiser, progress=progress, **settings)
        return pure.to(picture.device)


Step = Purification | Restoration | Transform


class Purifier:
    """A composition of purifications, restorations and transforms: purifier(picture) applies them in order.

    picture: B×3×H×W in 0..1; returns the same, 8-bit rounded, at another size where the purifier `changes_size`.
    str(purifier) is its text. The same seed gives the same noise, so that a protected and a clean picture compare. To
    be called inside `purifier.session()`.
    """

    def __init__(self, steps: list[Step], denoisers: Mapping[str, Denoiser], seed: int = 0):
        self.steps, self.denoisers, self.seed = list(steps), denoisers, seed

    def __call__(self, picture: Tensor, progress: Progress = silent) -> Tensor:
        check_shape(picture)  # every step looks at the values
        done, several = 0, len(self.purifications) + len(self.restorations) > 1
        for step in self.steps:
            if isinstance(step, Transform):
                picture = step(picture)
                continue
            report = part(progress, done, step.cost, self.cost) if several else progress
            if isinstance(step, Purification):
                picture = step.run(picture, self.denoiser_of(step), self.seed, report)
            else:
                picture = step(picture, report)
            done += step.cost
        return picture

    def __str__(self) -> str:
        return "+".join(str(step) for step in self.steps)

    @property
    def is_transform(self) -> bool:
        """Whether no network takes part."""
        return all(isinstance(step, Transform) for step in self.steps)

    @property
    def changes_size(self) -> bool:
        """Whether pictures come out at another size, so that they compare with `view(original)` only."""
        return any(step.changes_size for step in self.steps if isinstance(step, Transform))

    def view(self, picture: Tensor) -> Tensor:
        """What its size-changing steps alone make of the picture: B×3×H×W in 0..1 to B×3×h×w; no session is needed."""
        for step in self.steps:
            picture = step.view(picture) if isinstance(step, Transform) else picture
        return picture

    @property
    def purifications(self) -> list[Purification]:
        """The steps in which a diffusion model takes part."""
        return [step for step in self.steps if isinstance(step, Purification)]

    @property
    def restorations(self) -> list[Restoration]:
        """The steps in which a VAE or an upscaler takes part."""
        return [step for step in self.steps if isinstance(step, Restoration)]

    @property
    def cost(self) -> int:
        """Passes through networks, roughly, for what it takes beside others; 0 for transforms."""
        return sum(step.cost for step in self.steps if not isinstance(step, Transform))

    @property
    def iterations(self) -> int | None:
        """How many GrIDPure iterations it runs; None unless it is one GrIDPure alone."""
        alone = self._gridpure_alone()
        return None if alone is None else alone.value

    def with_iterations(self, iterations: int) -> Purifier:
        """The same purifier, which is one GrIDPure alone, with another number of iterations."""
        alone = self._gridpure_alone()
        if alone is None:
            raise ValueError(f"{self} is not one GrIDPure alone.")
        return Purifier([replace(alone, value=iterations)], self.denoisers, self.seed)

    def _gridpure_alone(self) -> Purification | None:
        step = self.steps[0] if len(self.steps) == 1 else None
        return step if isinstance(step, Purification) and step.method == "gridpure" else None

    def after_iterations(
        self, picture: Tensor, iterations: Iterable[int], progress: Progress = silent
    ) -> dict[int, Tensor]:
        """What one GrIDPure alone makes of the picture (1×3×H×W) after some of its iterations, by their number.

        Its noise belongs to the iteration, so each is what a purifier of that many iterations returns.
        """
        wanted, taken, done = frozenset(iterations), {}, 0

        def on_step(
            step: float, total: int, shown: Tensor | None = None, loss: Tensor | float | None = None, /
        ) -> None:
            nonlocal done
            if shown is not None:
                done += 1
                if done in wanted:
                    taken[done] = round_8bit(shown).to(picture.device)
            progress(step, total, shown)

        self(picture, on_step)
        return taken

    def with_seed(self, seed: int) -> Purifier:
        """The same purifier with other noise."""
        steps = [replace(step, seed=seed) if isinstance(step, Transform) else step for step in self.steps]
        return Purifier(steps, self.denoisers, seed)

    def session(self) -> AbstractContextManager:
        """The sessions of all networks that take part."""
        stack = ExitStack()
        used: dict[int, Denoiser | Autoencoder | Upscaler] = {}
        used |= {id(d): d for d in (self.denoiser_of(s) for s in self.purifications)}
        used |= {id(step.network): step.network for step in self.restorations}
        try:
            for network in used.values():
                stack.enter_context(network.session())
        except BaseException:
            stack.close()
            raise
        return stack

    def denoiser_of(self, step: Purification) -> Denoiser:
        """The denoiser a step of this purifier runs with."""
        return self.denoisers[step.denoiser] if step.denoiser else next(iter(self.denoisers.values()))


def parse_purifier(
    text: str,
    denoisers: Mapping[str, Denoiser],
    seed: int = 0,
    *,
    autoencoders: Mapping[str, Autoencoder] | None = None,
    upscalers: Mapping[str, Upscaler] | None = None,
) -> Purifier:
    """The purifier or transform a text names (see the module's docstring); "none" changes nothing.

    denoisers, autoencoders, upscalers: by name, the first of each kind is the default. seed: of all noise. Raises
    `AntiPureError` for unknown names, for values that make no sense and for what the networks cannot run.
    """
    steps: list[Step] = []
    for name in text.strip().split("+"):
        step: Step | None = None
        if not _is_denoisers_vae(name, denoisers, autoencoders or {}):
            step = parse_restoration(name, autoencoders or {}, upscalers or {})
        step = step or _parse_purification(name, denoisers)
        if step is None:
            _check_transform(name)
            step = parse_transform(name, seed)
        steps.append(step)
    return Purifier(_joined(steps, seed), denoisers, seed)


def parse_purifiers(
    text: str,
    denoisers: Mapping[str, Denoiser],
    seed: int = 0,
    *,
    autoencoders: Mapping[str, Autoencoder] | None = None,
    upscalers: Mapping[str, Upscaler] | None = None,
) -> list[Purifier]:
    """Several, separated by lines or commas, each once; lines that begin with # are comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    names = [name.strip() for line in lines for name in line.split(",") if name.strip()]
    parsed = [parse_purifier(name, denoisers, seed, autoencoders=autoencoders, upscalers=upscalers) for name in names]
    found = {str(purifier): purifier for purifier in parsed}
    if not found:
        raise AntiPureError("No purifier or transform is named; give at least one, such as gridpure10.")
    return list(found.values())


def _is_denoisers_vae(text: str, denoisers: Mapping[str, Denoiser], autoencoders: Mapping[str, Autoencoder]) -> bool:
    """Whether this is the round trip through a denoiser's own VAE: what "vae" meant before VAEs came by themselves."""
    match = re.fullmatch(r"(?:([\w .-]+):)?\s*vae\s*(\d*)", text.strip(), re.IGNORECASE)
    if match is None:
        return False
    name = (match[1] or "").strip()
    if name:
        return name in denoisers and (denoisers[name].latent or name not in autoencoders)
    return bool(denoisers) and (next(iter(denoisers.values())).latent or not autoencoders)


def _joined(steps: list[Step], seed: int) -> list[Step]:
    """Neighbouring transforms as one, so that each knows its place and draws its own noise."""
    joined: list[Step] = []
    for step in steps:
        if joined and isinstance(step, Transform) and isinstance(joined[-1], Transform):
            joined[-1] = Transform(joined[-1].steps + step.steps, seed)
        else:
            joined.append(step)
    return joined


def _parse_purification(text: str, denoisers: Mapping[str, Denoiser]) -> Purification | None:
    pattern = r"(?:([\w .-]+):)?\s*(" + "|".join(METHODS) + r")\s*(\d+)?(?:\s*@\s*(\d+))?(?:\s*/\s*(\d+))?"
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if match is None:
        return None
    name, method = (match[1] or "").strip(), match[2].lower()
    if not denoisers:
        raise AntiPureError(f"'{text.strip()}' needs a denoiser; wire one, or list transforms only.")
    if name and name not in denoisers:
        raise AntiPureError(f"There is no denoiser '{name}'; the names are {', '.join(denoisers)}.")
    if match[4] and method != "gridpure":
        raise AntiPureError(f"'{text.strip()}': only gridpure takes a timestep behind @.")
    if match[5] and method == "vae":
        raise AntiPureError(f"'{text.strip()}': vae runs no timesteps, so nothing may stand behind /.")
    value = int(match[3]) if match[3] else DEFAULTS[method]
    timestep = int(match[4]) if match[4] else {"gridpure": GRIDPURE_TIMESTEP, "vae": 1}.get(method, value)
    substeps = int(match[5]) if match[5] else 0
    # All of the timesteps, spelt out, is the same purifier.
    step = Purification(method, value, timestep, name, 0 if substeps == timestep else substeps)
    step.check(denoisers[name] if name else next(iter(denoisers.values())))
    return step


def _check_transform(text: str) -> None:
    match = re.match(r"[a-z_]+", text.strip().lower())
    if match is None or (match[0] not in TRANSFORMS and match[0] != "none"):
        defaults = {**RESTORATIONS, **DEFAULTS}
        purifiers = ", ".join(f"{name}{default or ''}" for name, default in defaults.items())
        known = ", ".join(f"{name}{default:g}" for name, (_, default, _) in TRANSFORMS.items())
        raise AntiPureError(
            f"'{text.strip()}' is no purifier or transform; give some of {purifiers}, {known}, joined by '+', or none."
        )
