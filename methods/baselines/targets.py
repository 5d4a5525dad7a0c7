"""Which of the wired models a published protection is made against."""

from __future__ import annotations

from ..attacks.ensemble import Target, VaeTargets, encodes, members_of, restricted
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError

DENOISER, LATENT_DENOISER, VAE = "denoiser", "latent denoiser", "vae"


def served(name: str, needs: str, target: Target) -> Target:
    """The members of the target that the protection can be made against, combined as they were.

    needs: "denoiser", any diffusion model; "latent denoiser", one with a VAE; "vae", a VAE, with or without one.
    Raises `AntiPureError` where there is none.
    """
    kept = restricted(target, lambda member: _serves(needs, member))
    if kept is not None:
        return kept
    if needs == VAE:
        raise AntiPureError(
            f"{name} acts on the latent of a VAE, and this denoiser works on pixels; wire VAE Targets or Denoiser from "
            "Model instead."
        )
    if needs == LATENT_DENOISER:
        raise AntiPureError(
            f"{name} acts on a diffusion model and its VAE; wire Denoiser from Model instead, or take mist_textural."
        )
    raise AntiPureError(
        f"{name} acts on a diffusion model, and VAEs alone are wired; wire Load Pixel Denoiser or Denoiser from Model, "
        "or take photoguard, mist_textural or pid."
    )


def used_targets(name: str, needs: str, target: Target) -> list[str]:
    """Lines that say over how many VAEs it is made, and what of the target it leaves out. Errors as `served`."""
    kept = members_of(served(name, needs, target))
    left = [member for member in members_of(target) if not any(member is one for one in kept)]
    vaes = sum(len(member.autoencoders) for member in kept if isinstance(member, VaeTargets))
    lines = [f"over {vaes} VAE{'s' * (vaes != 1)} of VAE Targets"] if vaes else []
    if any(isinstance(member, VaeTargets) for member in left):
        lines.append("not used: VAE Targets")
    pixel = sum(isinstance(member, Denoiser) for member in left)
    return lines + ([f"not used: {pixel} pixel denoiser{'s' * (pixel != 1)}"] if pixel else [])


def _serves(needs: str, member: Denoiser | VaeTargets) -> bool:
    if needs == VAE:
        return encodes(member)
    return isinstance(member, Denoiser) and (needs == DENOISER or member.latent)
