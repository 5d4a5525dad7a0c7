"""Published protections to compare with, over the pack's own PGD loop and denoisers.

Each file names its paper, its loss, its budget in true 8-bit levels and what is ours. Defaults are those published;
comparisons at equal budget give their own `levels`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..attacks.ensemble import CombinedDenoiser, CombinedLoss, Target, VaeTargets
from ..attacks.loss import Loss, MakeLoss
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..errors import AntiPureError
from . import advdm, anti_dreambooth, mist, photoguard, pid, simac
from .targets import DENOISER, LATENT_DENOISER, VAE, served

# From a single denoiser, or a VAE where a baseline needs no more, to a context manager that gives `make_loss`.
Prepare = Callable[[Any], AbstractContextManager[MakeLoss]]


def _stateless(make: Callable[[Any, Tensor], Loss]) -> Prepare:
    return lambda model: nullcontext(partial(make, model))


@dataclass(frozen=True)
class Baseline:
    """A published protection.

    levels: its budget in 8-bit levels. steps: of PGD. step_levels: the first step at that
    budget; with another budget it scales along. decay, random_start: as in `attacks.pgd`.
    prepare: from a single model to a context manager that gives `make_loss` for `attacks.pgd`.
    needs: what a model has to be, as in `targets.served`.
    """

    levels: float
    steps: int
    step_levels: float
    prepare: Prepare
    decay: bool = False
    random_start: bool = False
    needs: str = DENOISER

    @property
    def settings(self) -> AttackSettings:
        """The published budget and number of steps."""
        return AttackSettings(levels=self.levels, steps=self.steps)


def _mist(mode: str, needs: str) -> Baseline:
    make = partial(mist.mist_loss, mode=mode)
    return Baseline(mist.LEVELS, mist.STEPS, mist.STEP_LEVELS, _stateless(make), needs=needs)


BASELINES: dict[str, Baseline] = {
    "advdm": Baseline(advdm.LEVELS, advdm.STEPS, advdm.STEP_LEVELS, _stateless(advdm.advdm_loss)),
    "photoguard": Baseline(
        photoguard.LEVELS,
        photoguard.STEPS,
        photoguard.STEP_LEVELS,
        _stateless(photoguard.photoguard_loss),
        decay=True,
        random_start=True,
        needs=VAE,
    ),
    "mist": _mist("fused", LATENT_DENOISER),
    "mist_textural": _mist("textural", VAE),
    "mist_semantic": _mist("semantic", DENOISER),
    "anti_dreambooth_fsmg": Baseline(
        anti_dreambooth.LEVELS,
        anti_dreambooth.FSMG_STEPS,
        anti_dreambooth.STEP_LEVELS,
        _stateless(anti_dreambooth.fsmg_loss),
    ),
    "anti_dreambooth_aspl": Baseline(
        anti_dreambooth.LEVELS,
        anti_dreambooth.ASPL_STEPS,
        anti_dreambooth.STEP_LEVELS,
        anti_dreambooth.aspl,
    ),
    "simac": Baseline(simac.LEVELS, simac.STEPS, simac.STEP_LEVELS, simac.simac),
    "pid": Baseline(pid.LEVELS, pid.STEPS, pid.STEP_LEVELS, _stateless(pid.pid_loss), random_start=True, needs=VAE),
}


def apply_baseline(name: str, picture: Tensor, target: Target, settings: AttackSettings | None = None) -> Tensor:
    """The picture under the baseline `name` of `BASELINES`; result and errors as `attacks.pgd`.

    settings: None takes the published ones (`Baseline.settings`). A combined denoiser combines the losses of those
    of its members that serve; VAE targets count as one, by the mean of their losses. To be called inside
    `target.session()`. The networks are as they were afterwards, whatever happens.
    """
    if name not in BASELINES:
        raise AntiPureError(f"There is no baseline '{name}'; choose one of {', '.join(BASELINES)}.")
    baseline = BASELINES[name]
    settings = baseline.settings if settings is None else settings
    target = served(name, baseline.needs, target)
    with ExitStack() as stack:
        return pgd(
            picture,
            _make_loss(baseline, target, stack),
            settings,
            step_levels=settings.levels * baseline.step_levels / baseline.levels,
            decay=baseline.decay,
            random_start=baseline.random_start,
        )


def _make_loss(baseline: Baseline, target: Target, stack: ExitStack) -> MakeLoss:
    if isinstance(target, CombinedDenoiser):
        combined, members = target.combine, [_make_loss(baseline, member, stack) for member in target.members]
    elif isinstance(target, VaeTargets) and len(target.autoencoders) > 1:
        combined = partial(CombinedLoss, mode="mean")
        members = [stack.enter_context(baseline.prepare(one)) for one in target.autoencoders]
    else:
        single = target.autoencoders[0] if isinstance(target, VaeTargets) else target
        return stack.enter_context(baseline.prepare(single))
    return lambda clean: combined([make_loss(clean) for make_loss in members])
