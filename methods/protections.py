"""Every protection by its name: our presets, the published ones, the controls, and none."""

from __future__ import annotations

from torch import Tensor

from .antipure import terms
from .antipure.objective import PRESETS, Objective
from .antipure.protect import protect
from .attacks.ensemble import Target, encoders_of
from .attacks.settings import AttackSettings
from .baselines import BASELINES, apply_baseline
from .baselines.targets import used_targets
from .controls import CONTROLS, apply_control
from .errors import AntiPureError
from .pictures import round_8bit

NO_PROTECTION = "none"
NAMES = (*PRESETS, *CONTROLS, *BASELINES, NO_PROTECTION)


def needs_denoiser(protection: str | Objective) -> bool:
    """Whether the protection is made against a model; controls and none are not."""
    return isinstance(protection, Objective) or protection in PRESETS or protection in BASELINES


def used_terms(protection: str | Objective, target: Target) -> list[str]:
    """Lines that say which models of the target a protection uses and for what; none where it is all of them.

    protection: one that `needs_denoiser`. Raises `AntiPureError` where it cannot be made against the target.
    """
    if not isinstance(protection, Objective) and protection in BASELINES:
        return used_targets(protection, BASELINES[protection].needs, target)
    objective = protection if isinstance(protection, Objective) else PRESETS[protection]
    terms.check_target(objective, target)
    return terms.used_terms(objective, target)


def lacks_vae(protection: str | Objective, target: Target) -> bool:
    """Whether an objective of ours moves latents and no model of the target has any: a VAE of our own can stand in."""
    objective = PRESETS.get(protection) if isinstance(protection, str) else protection
    return objective is not None and bool(objective.latent) and not encoders_of(target)


def apply_protection(
    protection: str | Objective,
    picture: Tensor,
    denoiser: Target | None,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 (frozen)
) -> Tensor:
    """The picture under a protection of `NAMES`, or of one's own objective; result and errors as `attacks.pgd`.

    denoiser: may be None where `needs_denoiser` says so; else to be called inside `denoiser.session()`.
    settings: controls take no steps, and none takes no budget either.
    """
    if not isinstance(protection, Objective) and protection not in NAMES:
        raise AntiPureError(f"There is no protection '{protection}'; choose one of {', '.join(NAMES)}.")
    if protection == NO_PROTECTION:
        return round_8bit(picture)
    if protection in CONTROLS:
        return apply_control(protection, picture, settings)
    if denoiser is None:
        raise AntiPureError(f"The protection '{protection}' is made against a model; give a denoiser.")
    if protection in BASELINES:
        return apply_baseline(protection, picture, denoiser, settings)
    objective = protection if isinstance(protection, Objective) else PRESETS[protection]
    return protect(picture, denoiser, objective, settings)
