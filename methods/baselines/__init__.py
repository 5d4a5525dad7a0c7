"""Published protections to compare with, over the pack's own PGD loop and denoisers.

Each file names its paper, its loss, its budget in true 8-bit levels and what is ours. Defaults are those published;
comparisons at equal budget give their own `levels`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..attacks.ensemble import CombinedDenoiser
from ..attacks.loss import Loss, MakeLoss
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from . import advdm, anti_dreambooth, mist, photoguard, simac


def _stateless(make: Callable[[Denoiser, Tensor], Loss]) -> Callable[[Denoiser], AbstractContextManager[MakeLoss]]:
    return lambda denoiser: nullcontext(partial(make, denoiser))


@dataclass(frozen=True)
class Baseline:
    """A published protection.

    levels: its budget in 8-bit levels. steps: of PGD. step_levels: the first step at that
    budget; with another budget it scales along. decay, random_start: as in `attacks.pgd`.
    prepare: from a single denoiser to a context manager that gives `make_loss` for `attacks.pgd`.
    """

    levels: float
    steps: int
    step_levels: float
    prepare: Callable[[Denoiser], AbstractContextManager[MakeLoss]]
    decay: bool = False
    random_start: bool = False

    @property
    def settings(self) -> AttackSettings:
        """The published budget and number of steps."""
        return AttackSettings(levels=self.levels, steps=self.steps)


def _mist(mode: str) -> Baseline:
    make = partial(mist.mist_loss, mode=mode)
    return Baseline(mist.LEVELS, mist.STEPS, mist.STEP_LEVELS, _stateless(make))


BASELINES: dict[str, Baseline] = {
    "advdm": Baseline(advdm.LEVELS, advdm.STEPS, advdm.STEP_LEVELS, _stateless(advdm.advdm_loss)),
    "photoguard": Baseline(
        photoguard.LEVELS,
        photoguard.STEPS,
        photoguard.STEP_LEVELS,
        _stateless(photoguard.photoguard_loss),
        decay=True,
        random_start=True,
    ),
    "mist": _mist("fused"),
    "mist_textural": _mist("textural"),
    "mist_semantic": _mist("semantic"),
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
}


def apply_baseline(
    name: str, picture: Tensor, denoiser: Denoiser | CombinedDenoiser, settings: AttackSettings | None = None
) -> Tensor:
    """The picture under the baseline `name` of `BASELINES`; result and errors as `attacks.pgd`.

    settings: None takes the published ones (`Baseline.settings`). A combined denoiser combines the losses of its
    members. To be called inside `denoiser.session()`. The denoiser's network is as it was afterwards, whatever happens.
    """
    if name not in BASELINES:
        raise AntiPureError(f"There is no baseline '{name}'; choose one of {', '.join(BASELINES)}.")
    baseline = BASELINES[name]
    settings = baseline.settings if settings is None else settings
    with ExitStack() as stack:
        return pgd(
            picture,
            _make_loss(baseline, denoiser, stack),
            settings,
            step_levels=settings.levels * baseline.step_levels / baseline.levels,
            decay=baseline.decay,
            random_start=baseline.random_start,
        )


def _make_loss(baseline: Baseline, denoiser: Denoiser | CombinedDenoiser, stack: ExitStack) -> MakeLoss:
    if not isinstance(denoiser, CombinedDenoiser):
        return stack.enter_context(baseline.prepare(denoiser))
    members = [_make_loss(baseline, member, stack) for member in denoiser.members]
    return lambda clean: denoiser.combine([make_loss(clean) for make_loss in members])
