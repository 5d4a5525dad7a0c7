"""Protect a picture: an objective of `antipure.objective`, maximised by the one PGD loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...kernels.filters import gaussian_blur
from ...kernels.spectrum import limit_peaks
from ..attacks.balanced_loss import BalancedLoss, ShapedLoss
from ..attacks.budget import is_grey
from ..attacks.ensemble import CombinedDenoiser, Target, VaeTargets, encoders_of, without_vaes
from ..attacks.loss import Loss
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..attacks.tiled_loss import TiledLoss
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import check_shape, random_stream
from .carried import carried
from .guidance import paper_terms
from .latent import LatentLoss
from .objective import LOOKED_AT, Objective
from .perceptual import balance_colours, shaped_budget
from .terms import check_target
from .unrolled import unrolled_term

# Half a level: the latent shift has no slope at the picture itself.
NUDGE = 0.5


def antipure_loss(target: Target, objective: Objective, clean: Tensor) -> Loss:
    """The `Loss` for `attacks.pgd`: the terms of the objective that the target has the models for.

    clean: 1×3×H×W pixels of the picture to protect, any size. Raises `AntiPureError` for a target that has the models
    for none of them.
    """
    check_target(objective, target)
    denoiser, encoders = without_vaes(target), encoders_of(target)
    losses: list[Loss] = []
    weights = []
    if objective.latent and encoders:
        losses.append(_latent_loss(encoders, clean, objective))
        weights.append(objective.latent)
    if objective.asks_denoiser and denoiser is not None:
        loss = denoising_loss(denoiser, objective, clean)
        if not objective.latent:
            return loss
        if not is_grey(clean).all():  # of a grey picture the grey part is all there is
            loss = ShapedLoss(loss, partial(balance_colours, luminance=objective.luminance))
        losses.append(loss)
        weights.append(1.0)
    return BalancedLoss(losses, weights, objective.memory)


def _latent_loss(encoders: list[Autoencoder | Denoiser], clean: Tensor, o: Objective) -> LatentLoss:
    return LatentLoss(encoders, clean, o.view_least, o.views_as_is, o.views_cleaned, o.pull)


def denoising_loss(denoiser: Denoiser | CombinedDenoiser, objective: Objective, clean: Tensor) -> Loss:
    """The objective's terms of a diffusion model: their mean over random tiles (`attacks.tiled_loss`).

    clean: as for `antipure_loss`. A combined denoiser combines the losses of its members.
    """
    if isinstance(denoiser, CombinedDenoiser):
        members = [member for member in denoiser.members if not isinstance(member, VaeTargets)]
        return denoiser.combine([denoising_loss(member, objective, clean) for member in members])
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

    share = objective.tile_share
    if share < 1:
        share = min(share, LOOKED_AT / (clean.shape[-2] * clean.shape[-1]))
    return TiledLoss(denoiser, clean, terms, forwards=forwards, at_once=at_once, share=share)


def protect(
    picture: Tensor,
    target: Target,
    objective: Objective,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 (frozen)
) -> Tensor:
    """The picture protected by PGD on this objective; result and errors as `attacks.pgd`.

    settings: `Objective.steps` may run fewer of its steps, `Objective.shaped` scales its mask.
    To be called inside `target.session()`.
    """
    check_shape(picture)  # its values are looked at once, by `pgd`
    settings = replace(settings, steps=objective.steps(settings.steps))
    if objective.shaped:
        settings.check(picture)
        mask, shares = settings.mask, shaped_budget(picture)
        settings = replace(settings, mask=shares if mask is None else shares * mask.to(shares))
    first = settings.levels * objective.first_step or None
    ascent = partial(_ascent, target=target, objective=objective)
    if 0 < objective.trained_area < picture.shape[-2] * picture.shape[-1] and settings.steps > 1:
        return carried(ascent, partial(_start, objective), picture, settings, objective.trained_area, first)
    return ascent(picture, settings, start=_start(objective, picture, settings), step_levels=first)


def _start(objective: Objective, picture: Tensor, settings: AttackSettings) -> Tensor | None:
    """Where the ascent begins, None at the picture itself."""
    if not (objective.start_blur or objective.latent):
        return None
    start = gaussian_blur(picture.float(), objective.start_blur)  # 0 changes nothing
    return nudged(start, settings) if objective.latent else start


def nudged(picture: Tensor, settings: AttackSettings) -> Tensor:
    """Each picture with `NUDGE` levels of random signs under its own seed."""
    shape = picture[:1].shape
    signs = [torch.randint(2, shape, generator=random_stream(seed, -2)) for seed in settings.seeds_of(len(picture))]
    nudge = (torch.cat(signs).to(picture.device) * 2.0 - 1) * NUDGE / 255
    return (picture.float() + nudge).clamp(0, 1)


def _ascent(
    picture: Tensor,
    settings: AttackSettings,
    *,
    target: Target,
    objective: Objective,
    start: Tensor | None,
    step_levels: float | None,
    rounded: bool = True,
) -> Tensor:
    """PGD on the objective, from a start."""
    precondition, constrain = None, None
    if objective.luminance != 1 and not objective.latent:  # with it the one gradient alone is balanced
        precondition = partial(balance_colours, luminance=objective.luminance)
    if objective.peak_share < 1:
        constrain = partial(limit_peaks, share=objective.peak_share)
    return pgd(
        picture,
        partial(antipure_loss, target, objective),
        settings,
        step_levels=step_levels,
        start=start,
        precondition=precondition,
        constrain=constrain,
        rounded=rounded,
    )
