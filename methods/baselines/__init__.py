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
from ..attacks.pgd import Callback, Loss, pgd
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from . import advdm, anti_dreambooth, mist, photoguard, simac
from .surrogate import MakeLoss


def _stateless(make: Callable[[Denoiser, Tensor], Loss]) -> Callable[[Denoiser], AbstractContextManager[MakeLoss]]:
    return lambda denoiser: nullcontext(partial(make, denoiser))


@dataclass(frozen=True)
class Baseline:
    """A published protection.

    paper: where it is from. levels: its budget in 8-bit levels. steps: of PGD. step_levels: the first step at that
    budget; with another budget it scales along. decay, random_start: as in `attack.pgd`.
    prepare: from a single denoiser to a context manager that gives `make_loss` for `attack.pgd`.
    """

    paper: str
    levels: float
    steps: int
    step_levels: float
    prepare: Callable[[Denoiser], AbstractContextManager[MakeLoss]]
    decay: bool = False
    random_start: bool = False


def _mist(mode: str) -> Baseline:
    make = partial(mist.mist_loss, mode=mode)
    return Baseline(f"Mist, {mode} (2023)", mist.LEVELS, mist.STEPS, mist.STEP_LEVELS, _stateless(make))


BASELINES: dict[str, Baseline] = {
    "advdm": Baseline("AdvDM (ICML 2023)", advdm.LEVELS, advdm.STEPS, advdm.STEP_LEVELS, _stateless(advdm.advdm_loss)),
    "photoguard": Baseline(
        "PhotoGuard, encoder attack (ICML 2023)",
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
        "Anti-DreamBooth, FSMG (ICCV 2023)",
        anti_dreambooth.LEVELS,
        anti_dreambooth.FSMG_STEPS,
        anti_dreambooth.STEP_LEVELS,
        _stateless(anti_dreambooth.fsmg_loss),
    ),
    "anti_dreambooth_aspl": Baseline(
        "Anti-DreamBooth, ASPL (ICCV 2023)",
        anti_dreambooth.LEVELS,
        anti_dreambooth.ASPL_STEPS,
        anti_dreambooth.STEP_LEVELS,
        anti_dreambooth.aspl,
    ),
    "simac": Baseline("SimAC (CVPR 2024)", simac.LEVELS, simac.STEPS, simac.STEP_LEVELS, simac.simac),
}


def apply_baseline(
    name: str,
    picture: Tensor,
    denoiser: Denoiser | CombinedDenoiser,
    *,
    levels: float | None = None,
    steps: int | None = None,
    mask: Tensor | None = None,
    seeds: int | list[int] = 0,
    callback: Callback | None = None,
) -> Tensor:
    """The picture under the baseline `name` of `BASELINES`; arguments, result and errors as `attack.pgd`.

    levels, steps: None takes the published ones. A combined denoiser combines the losses of its members.
    To be called inside `denoiser.session()`. The denoiser's network is as it was afterwards, whatever happens.
    """
    if name not in BASELINES:
        raise AntiPureError(f"There is no baseline '{name}'; choose one of {', '.join(BASELINES)}.")
    baseline = BASELINES[name]
    levels = baseline.levels if levels is None else levels
    with ExitStack() as stack:
        return pgd(
            picture,
            _make_loss(baseline, denoiser, stack),
            levels=levels,
            steps=baseline.steps if steps is None else steps,
            step_levels=levels * baseline.step_levels / baseline.levels,
            decay=baseline.decay,
            random_start=baseline.random_start,
            mask=mask,
            seeds=seeds,
            callback=callback,
        )


def _make_loss(baseline: Baseline, denoiser: Denoiser | CombinedDenoiser, stack: ExitStack) -> MakeLoss:
    if not isinstance(denoiser, CombinedDenoiser):
        return stack.enter_context(baseline.prepare(denoiser))
    members = [_make_loss(baseline, member, stack) for member in denoiser.members]
    return lambda clean: denoiser.combine([make_loss(clean) for make_loss in members])
