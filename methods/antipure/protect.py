"""Protect a picture: an objective of `antipure.objective`, maximised by the one PGD loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...kernels.filters import gaussian_blur
from ..attacks.ensemble import CombinedDenoiser
from ..attacks.loss import Loss
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..attacks.tiled_loss import TiledLoss
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import check_shape
from .guidance import paper_terms
from .objective import Objective
from .perceptual import balance_colours, shaped_budget
from .unrolled import unrolled_term


def antipure_loss(denoiser: Denoiser | CombinedDenoiser, objective: Objective, clean: Tensor) -> Loss:
    """The `Loss` for `attacks.pgd`: mean over random tiles of the objective's terms.

    clean: 1×3×H×W pixels of the picture to protect, any size, cut into tiles by `attacks.tiled_loss`. A combined
    denoiser combines the losses of its members.
    """
    if isinstance(denoiser, CombinedDenoiser):
        return denoiser.combine([antipure_loss(member, objective, clean) for member in denoiser.members])
    objective.check(denoiser)
    tile = denoiser.tile_for(*clean.shape[-2:])
    if objective.pfg and tile < objective.patch_size:
        raise AntiPureError(f"A patch size of {objective.patch_size} does not fit into {tile}-px tiles.")
    uses_paper = bool(objective.ddpm or objective.pfg or objective.etg)
    at_once = 2 if objective.etg else 1
    forwards = at_once * uses_paper + objective.unrolled_steps * bool(objective.unrolled)

    def terms(tiles: Tensor, reference: Tensor, generators: list[torch.Generator]) -> Tensor:
        value = torch.zeros(len(tiles), device=tiles.device)
        if uses_paper:
            value = value + paper_terms(denoiser, tiles, generators, objective)
        if objective.unrolled:
            value = value + objective.unrolled * unrolled_term(denoiser, tiles, reference, generators, objective)
        return value

    return TiledLoss(denoiser, clean, terms, forwards=forwards, at_once=at_once)


def protect(
    picture: Tensor,
    denoiser: Denoiser | CombinedDenoiser,
    objective: Objective,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 (frozen)
) -> Tensor:
    """The picture protected by PGD on this objective; result and errors as `attacks.pgd`.

    settings: `Objective.steps` may run fewer of its steps, `Objective.shaped` scales its mask.
    To be called inside `denoiser.session()`.
    """
    check_shape(picture)  # its values are looked at once, by `pgd`
    mask = settings.mask
    if objective.shaped:
        settings.check(picture)
        shares = shaped_budget(picture)
        mask = shares if mask is None else shares * mask.to(shares)
    return pgd(
        picture,
        partial(antipure_loss, denoiser, objective),
        replace(settings, steps=objective.steps(settings.steps), mask=mask),
        start=gaussian_blur(picture.float(), objective.start_blur) if objective.start_blur else None,
        precondition=None if objective.luminance == 1 else partial(balance_colours, luminance=objective.luminance),
    )
