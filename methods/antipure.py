"""AntiPure (Yang et al., ICCV 2025, arXiv 2509.13922): perturbations that outlive diffusion purification.

The paper maximises over ||delta||_inf <= eta

    E_{eps, t~U(1, t_p)} [ L_ddpm + l1 * exp(abar_t - 1) * L_fre + l2 * exp(L_errt) ]

`paper` is that loss. `unrolled` goes back to the paper's stated objective, || Pure(x + delta) - x ||: a few short
purifier steps are unrolled and the change they make to the picture's structure is maximised. `strong` does so in
expectation over timesteps and sizes and with less grey in its steps (`shaping.balance_colours`);
`strong_shaped` puts it where eyes see it least (`shaping.shaped_budget`). `fast` gives `strong` a start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.filters import gaussian_blur
from ..kernels.frequency import high_frequency_mean
from .attack import Callback, Loss, check_mask, pgd
from .denoiser import Denoiser, add_noise, predict_x0
from .ensemble import CombinedDenoiser
from .errors import AntiPureError
from .pictures import check_picture, noise, to_device, to_pixels
from .shaping import balance_colours, shaped_budget
from .tiles import tiled_loss
from .transforms import resized


@dataclass(frozen=True)
class Objective:
    """Weights and settings of the four terms. The defaults are the paper's (unpublished ones: METHODS §1).

    ddpm, pfg, etg: weights of L_ddpm, of exp(abar_t - 1) L_fre (lambda 1) and of exp(L_errt) (lambda 2).
    unrolled: weight of the unrolled objective.
    patch_size: side s of PFG's patches. t_p: timesteps are drawn from 1..t_p. t_err: ETG's higher timestep.
    unrolled_steps, unrolled_t: how many purifier steps are unrolled, and the timestep each noises to.
    unrolled_t_low: each tile draws its timestep from unrolled_t_low..unrolled_t; 0: always unrolled_t.
    turned: share of the tiles that are turned and mirrored at random first (unrolled term only).
    halved: share of the tiles, and of their clean companions, resized to half and back first (unrolled term only).
    luminance: what is left of the gradient's grey part (`shaping.balance_colours`), 1 all of it.
    shaped: whether the budget follows what eyes notice (`shaping.shaped_budget`).
    start_blur: deviation in pixels of the Gaussian whose blurred picture PGD begins at, as far as the ball reaches; 0:
        at the picture.
    step_share: share of the steps asked for that is run, rounded down, at least one.
    """

    ddpm: float = 1.0
    pfg: float = 0.5
    etg: float = 0.5
    unrolled: float = 0.0
    patch_size: int = 8
    t_p: int = 10
    t_err: int = 100
    unrolled_steps: int = 4
    unrolled_t: int = 20
    unrolled_t_low: int = 0
    turned: float = 0.0
    halved: float = 0.0
    luminance: float = 1.0
    shaped: bool = False
    start_blur: float = 0.0
    step_share: float = 1.0

    def check(self, denoiser: Denoiser) -> None:
        """Raise `AntiPureError` when a setting cannot be used with this denoiser."""
        last = denoiser.timesteps
        if not any((self.ddpm, self.pfg, self.etg, self.unrolled)):
            raise AntiPureError("All weights of the objective are 0; give at least one term a weight.")
        if not 1 <= self.t_p <= last:
            raise AntiPureError(f"t_p is {self.t_p}; it must lie in 1..{last} for this denoiser.")
        if self.etg and not self.t_p < self.t_err <= last:
            raise AntiPureError(f"t_err is {self.t_err}; it must lie above t_p ({self.t_p}) and at most at {last}.")
        if self.patch_size < 2 or self.patch_size % 2:
            raise AntiPureError(f"The patch size is {self.patch_size}; it must be even and at least 2.")
        if self.unrolled and not (self.unrolled_steps >= 1 and 1 <= self.unrolled_t <= last):
            raise AntiPureError(
                f"{self.unrolled_steps} unrolled steps at timestep {self.unrolled_t}: at least 1 step, in 1..{last}."
            )
        if not 0 <= self.unrolled_t_low <= self.unrolled_t:
            raise AntiPureError(
                f"unrolled_t_low is {self.unrolled_t_low}; it must lie in 0..{self.unrolled_t}, which is unrolled_t."
            )
        for name in ("turned", "halved"):
            if not 0 <= getattr(self, name) <= 1:
                raise AntiPureError(f"{name} is {getattr(self, name):g}; it is a share of the tiles, 0..1.")
        if not 0 <= self.luminance <= 1:
            raise AntiPureError(f"luminance is {self.luminance:g}; it must lie in 0..1, and 1 changes nothing.")
        if self.start_blur < 0:
            raise AntiPureError(f"start_blur is {self.start_blur:g}; it is in pixels, at least 0.")
        if not 0 < self.step_share <= 1:
            raise AntiPureError(f"step_share is {self.step_share:g}; it must lie in 0..1, above 0.")

    def steps(self, asked: int) -> int:
        """How many of the steps asked for are run."""
        return min(asked, max(1, int(asked * self.step_share)))


UNROLLED = Objective(ddpm=0, pfg=0, etg=0, unrolled=1)
STRONG = replace(UNROLLED, unrolled_t=30, unrolled_t_low=10, halved=0.25, luminance=0.25)
PRESETS = {
    "strong": STRONG,
    "strong_shaped": replace(STRONG, shaped=True),
    "unrolled": UNROLLED,
    "paper": Objective(),
    # What `strong` ends in looks smoother than the picture: it takes away as much detail as the budget lets it, and the
    # purifier the rest. So begin there, and let the few steps arrange what is left.
    "fast": replace(STRONG, start_blur=1.0, step_share=0.09),
}


def l_ddpm(eps_hat: Tensor, eps: Tensor) -> Tensor:
    """|| eps - eps_theta(x_t, t) ||^2 as a mean, one value per sample."""
    return (eps_hat - eps).square().flatten(1).mean(1)


def noised_loss(
    denoiser: Denoiser, z: Tensor, t: Tensor, generators: list[torch.Generator], *, trainable: bool = False
) -> Tensor:
    """L_ddpm of z (N×C×h×w in model space) at 0-based timesteps t (N), each sample with noise of its own stream: N.

    trainable: gradients reach the network's weights, too.
    """
    eps = noise(tuple(z.shape[1:]), generators, z.device)
    x_t = add_noise(z, eps, denoiser.alphas_cumprod[t])
    return l_ddpm(denoiser.predict_trainable(x_t, t) if trainable else denoiser.predict_noise(x_t, t), eps)


def l_fre(x0_hat: Tensor, patch_size: int) -> Tensor:
    """Patch-wise Frequency Guidance: sigmoid of the mean signed high-frequency DCT coefficient, per sample."""
    return torch.sigmoid(high_frequency_mean(x0_hat, patch_size))


def l_errt(eps_err: Tensor, eps_hat: Tensor) -> Tensor:
    """Erroneous Timestep Guidance: -|| eps_theta(x_t, t_err) - eps_theta(x_t, t) ||^2 as a mean, per sample.

    A mean, because exp() of a sum over a picture underflows to 0 and leaves no gradient.
    """
    return -(eps_err - eps_hat).square().flatten(1).mean(1)


def high_pass(x: Tensor, window: int = 4) -> Tensor:
    """x without its local mean over window×window pixels (smaller at the borders).

    A wider window lets the perturbation move to middle frequencies, which survive a purifier whatever their phase;
    with 4 px more of the distortion is owed to the perturbation's structure than with 8 px.
    """
    before = (window - 1) // 2
    after = window - 1 - before
    ones = torch.ones_like(x[:1, :1])

    def local_sum(y: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(y, (before, after, before, after)), window, stride=1)

    return x - local_sum(x) / local_sum(ones)


def paper_terms(denoiser: Denoiser, tiles: Tensor, generators: list[torch.Generator], o: Objective) -> Tensor:
    """L_ddpm + l1 exp(abar_t - 1) L_fre + l2 exp(L_errt), one value per tile (N×3×T×T pixels).

    Each tile draws its own t and eps. One forward on x_t serves all three terms; ETG adds the second timestep
    to the same batch.
    """
    z = denoiser.encode(tiles)
    t = to_device(torch.cat([torch.randint(o.t_p, (1,), generator=g) for g in generators]), z.device)
    eps = noise(tuple(z.shape[1:]), generators, z.device)
    abar_t = denoiser.alphas_cumprod[t]
    x_t = add_noise(z, eps, abar_t)
    if o.etg:
        t_err = torch.full_like(t, o.t_err - 1)
        eps_hat, eps_err = denoiser.predict_noise(torch.cat([x_t, x_t]), torch.cat([t, t_err])).chunk(2)
    else:
        eps_hat = denoiser.predict_noise(x_t, t)
    loss = o.ddpm * l_ddpm(eps_hat, eps)
    if o.pfg:
        x0_hat = denoiser.decode(predict_x0(x_t, eps_hat, abar_t))
        loss = loss + o.pfg * torch.exp(abar_t - 1) * l_fre(x0_hat, o.patch_size)
    if o.etg:
        loss = loss + o.etg * torch.exp(l_errt(eps_err, eps_hat))
    return loss


def unrolled_purification(
    denoiser: Denoiser, tiles: Tensor, generators: list[torch.Generator], steps: int, timestep: int | Tensor
) -> Tensor:
    """`steps` short purifier steps, differentiable: noise to `timestep`, one-step x0_hat, clamp. N×3×T×T pixels.

    timestep: one for all tiles, or N of them.
    """
    z = denoiser.encode(tiles)
    t = (torch.as_tensor(timestep, device=z.device) - 1).expand(len(z))
    abar_t = denoiser.alphas_cumprod[t]
    for _ in range(steps):
        x_t = add_noise(z, noise(tuple(z.shape[1:]), generators, z.device), abar_t)
        z = denoiser.clamp(predict_x0(x_t, denoiser.predict_noise(x_t, t), abar_t))
    return denoiser.decode(z)


def turn(tiles: Tensor, orientations: list[int]) -> Tensor:
    """N×C×T×T tiles in one of the 8 orientations of a square each, numbered 0..7; 0 leaves a tile as it is."""
    turned = []
    for tile, orientation in zip(tiles, orientations, strict=True):
        tile = tile.rot90(orientation % 4, (-2, -1))
        turned.append(tile.flip(-1) if orientation >= 4 else tile)
    return torch.stack(turned)


def halve(tiles: Tensor, chosen: list[bool]) -> Tensor:
    """The chosen ones of N×3×T×T pixels resized to half and back, as many a picture is on its way."""
    if not any(chosen):
        return tiles
    index = to_device(torch.tensor(chosen).nonzero()[:, 0], tiles.device)
    halves = to_pixels(resized((tiles[index] + 1) / 2, 0.5))
    return tiles.clone().index_put((index,), halves.to(tiles))


def unrolled_term(
    denoiser: Denoiser, tiles: Tensor, clean: Tensor, generators: list[torch.Generator], o: Objective
) -> Tensor:
    """Mean square of Pure(x + delta) - x after its low frequencies are removed, one value per tile.

    Without the high-pass a uniform shift would win: it survives purification and protects nothing. Timesteps,
    orientations and sizes are drawn anew for each tile: what works for all of them is less this network's own weakness
    (expectation over transformations, Athalye et al., ICML 2018), and half size makes it reach for coarser structure.
    """
    timestep: int | Tensor = o.unrolled_t
    if o.unrolled_t_low:
        drawn = [torch.randint(o.unrolled_t_low, o.unrolled_t + 1, (1,), generator=g) for g in generators]
        timestep = to_device(torch.cat(drawn), tiles.device)
    if o.turned:
        orientations = [_orientation(o.turned, g) for g in generators]
        tiles, clean = turn(tiles, orientations), turn(clean, orientations)
    if o.halved:
        chosen = [bool(torch.rand((), generator=g) < o.halved) for g in generators]
        tiles, clean = halve(tiles, chosen), halve(clean, chosen)
    pure = unrolled_purification(denoiser, tiles, generators, o.unrolled_steps, timestep)
    return high_pass(pure - clean).square().flatten(1).mean(1)


def _orientation(share: float, generator: torch.Generator) -> int:
    drawn = torch.rand((), generator=generator) < share
    orientation = int(torch.randint(8, (), generator=generator))
    return orientation if drawn else 0


def antipure_loss(denoiser: Denoiser | CombinedDenoiser, objective: Objective, clean: Tensor) -> Loss:
    """The `Loss` for `attack.pgd`: mean over random tiles of the objective's terms.

    clean: 1×3×H×W pixels of the picture to protect, any size, cut into tiles by `tiles.tiled_loss`. A combined
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

    return tiled_loss(denoiser, clean, terms, forwards=forwards, at_once=at_once)


def protect(
    picture: Tensor,
    denoiser: Denoiser | CombinedDenoiser,
    objective: Objective,
    *,
    levels: float = 8,
    steps: int = 100,
    mask: Tensor | None = None,
    seeds: int | list[int] = 0,
    callback: Callback | None = None,
) -> Tensor:
    """The picture protected by PGD on this objective; arguments, result and errors as `attack.pgd`.

    steps: `Objective.steps` may run fewer of them.

    To be called inside `denoiser.session()`.
    """
    check_picture(picture)
    check_mask(mask, picture)
    if objective.shaped:
        shares = shaped_budget(picture)
        mask = shares if mask is None else shares * mask.to(shares)
    return pgd(
        picture,
        partial(antipure_loss, denoiser, objective),
        levels=levels,
        steps=objective.steps(steps),
        start=gaussian_blur(picture.float(), objective.start_blur) if objective.start_blur else None,
        precondition=None if objective.luminance == 1 else partial(balance_colours, luminance=objective.luminance),
        mask=mask,
        seeds=seeds,
        callback=callback,
    )
