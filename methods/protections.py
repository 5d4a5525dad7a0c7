"""Every protection by its name: our presets, the published ones, the controls, and none."""

from __future__ import annotations

from torch import Tensor

from .antipure.objective import PRESETS, Objective
from .antipure.protect import protect
from .attacks.ensemble import CombinedDenoiser
from .attacks.pgd import Callback
from .baselines import BASELINES, apply_baseline
from .controls import CONTROLS, apply_control
from .diffusion.denoiser import Denoiser
from .errors import AntiPureError
from .pictures import round_8bit

NO_PROTECTION = "none"
NAMES = (*PRESETS, *CONTROLS, *BASELINES, NO_PROTECTION)


def needs_denoiser(protection: str | Objective) -> bool:
    """Whether the protection is made against a model; controls and none are not."""
    return isinstance(protection, Objective) or protection in PRESETS or protection in BASELINES


def apply_protection(
    protection: str | Objective,
    picture: Tensor,
    denoiser: Denoiser | CombinedDenoiser | None,
    *,
    levels: float = 8,
    steps: int = 100,
    mask: Tensor | None = None,
    seeds: int | list[int] = 0,
    callback: Callback | None = None,
) -> Tensor:
    """The picture under a protection of `NAMES`, or of one's own objective; arguments, result, errors as `attack.pgd`.

    denoiser: may be None where `needs_denoiser` says so; else to be called inside `denoiser.session()`.
    steps, callback: not for controls, which take no steps.
    """
    if not isinstance(protection, Objective) and protection not in NAMES:
        raise AntiPureError(f"There is no protection '{protection}'; choose one of {', '.join(NAMES)}.")
    if protection == NO_PROTECTION:
        return round_8bit(picture)
    settings = {"levels": levels, "mask": mask, "seeds": seeds}
    if protection in CONTROLS:
        return apply_control(protection, picture, **settings)
    settings |= {"steps": steps, "callback": callback}
    if protection in BASELINES:
        return apply_baseline(protection, picture, denoiser, **settings)
    return protect(picture, denoiser, PRESETS.get(protection, protection), **settings)
