"""Which terms of an objective a target has the models for, in words and as a check."""

from __future__ import annotations

from ..attacks.ensemble import Target, encoders_of, members_of, without_vaes
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from .objective import Objective


def check_target(objective: Objective, target: Target) -> None:
    """Raise `AntiPureError` for an objective that makes no sense, or a target with the models for none of its terms."""
    objective.check_values()
    denoisers, encoders = _denoisers(target), encoders_of(target)
    if objective.asks_denoiser:
        for denoiser in denoisers:
            objective.check(denoiser)
    if (objective.asks_denoiser and denoisers) or (objective.latent and encoders):
        return
    if objective.latent:
        wanted = "is about the latent of a VAE, and none is wired; wire VAE Targets or Denoiser from Model"
    else:
        wanted = (
            "is about a diffusion model, and VAEs alone are wired; wire Load Pixel Denoiser or Denoiser from Model, or "
            "take the preset robust"
        )
    raise AntiPureError(f"This objective {wanted}.")


def used_terms(objective: Objective, target: Target) -> list[str]:
    """Lines that say which terms act on which models, and what is left out for want of one.

    Empty where the objective has no latent term and the target no VAEs: all of it acts on all of them then.
    """
    denoisers, encoders = _denoisers(target), encoders_of(target)
    alone = len(denoisers) == len(members_of(target))
    if not objective.latent:
        return [] if alone else ["without a latent term: VAE Targets is not used"]
    latent = f"latent term over {counted(len(encoders), 'VAE')}"
    denoising = "unrolled term" if not any((objective.ddpm, objective.pfg, objective.etg)) else "denoising terms"
    if not objective.asks_denoiser:
        unused = sum(not denoiser.latent for denoiser in denoisers)
        return [latent, *([f"not used: {counted(unused, 'pixel denoiser')}"] if unused else [])]
    if not encoders:
        return [f"no VAE wired: the {denoising} alone"]
    if not denoisers:
        return ["no diffusion model wired:", f"the {latent} alone"]
    return [latent, f"{denoising} over {counted(len(denoisers), 'diffusion model')}"]


def counted(count: int, what: str) -> str:
    """A number and what is counted."""
    return f"{count} {what}{'s' * (count != 1)}"


def _denoisers(target: Target) -> list[Denoiser]:
    found = without_vaes(target)
    return [] if found is None else [one for one in members_of(found) if isinstance(one, Denoiser)]
