"""SimAC (Wang et al., "SimAC: A Simple Anti-Customization Method", CVPR 2024, arXiv 2312.07865).

Anti-DreamBooth's ASPL with two changes:

* Adaptive greedy time selection, before the attack. Per round, five timesteps are drawn from those left; the 40 around
  the one with the smallest gradient of L_ddpm are dropped, and the picture takes one step along the gradient at the
  one with the largest; until at most 100 timesteps of 1000 are left. The attack draws its t from these.
* Feature interference: the attack maximises L_ddpm + lambda * L_feat, L_feat being the mean square of the change of the
  decoder's features between x + delta and x, under the same noise and t (lambda = 1).

Of the feature term: features are the outputs of the last three blocks of a U-Net's decoder, seen by hooks; the released
code takes the branch before the residual addition of the last level's three residual blocks. It also detaches the
term, so that it has no effect there; here it has its gradient. Networks without such a decoder are refused.
The selection looks at one random tile.

Budget: the released 16/255 of the [-1, 1] range, 8 levels, in 50 rounds of 6 steps of 0.005 (0.64 levels).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.transfer import to_device
from ..attacks.loss import Loss, MakeLoss
from ..attacks.tiled_loss import TiledLoss, random_tile
from ..diffusion.denoiser import Denoiser, add_noise, trainable_network
from ..diffusion.loss import l_ddpm, noised_loss
from ..errors import AntiPureError
from ..gradients.checkpointing import blocks
from ..pictures import noise
from .advdm import draw_timesteps
from .surrogate import alternating

LEVELS, STEPS, STEP_LEVELS = 8.0, 300, 0.6375
FEATURE_WEIGHT = 1.0
FEATURE_BLOCKS = 3
CANDIDATES = 5
DECODERS = ("up_blocks", "output_blocks")  # in diffusers; in ADM and ComfyUI


def decoder_blocks(network: nn.Module) -> list[nn.Module]:
    """The last blocks of the network's decoder. Raises `AntiPureError` where no decoder can be found."""
    names = {id(module): name for name, module in network.named_modules()}
    found = [block for block in blocks(network) if set(names[id(block)].split(".")) & set(DECODERS)]
    if not found:
        raise AntiPureError(
            f"SimAC looks at the decoder blocks of a U-Net, and this {type(network).__name__} has none that can be "
            "found; use a U-Net (Stable Diffusion 1, 2 or XL, or a pixel denoiser)."
        )
    return found[-FEATURE_BLOCKS:]


@contextmanager
def watched(modules: list[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the modules' latest outputs, by position in the list; the hooks are gone afterwards."""
    found: dict[int, Tensor] = {}

    def keep(i: int, out: Any) -> None:
        while not isinstance(out, Tensor):  # some blocks return tuples or dicts of one entry
            out = next(iter(out.values())) if isinstance(out, dict) else out[0]
        found[i] = out

    handles = []
    try:
        for i, module in enumerate(modules):
            handles.append(module.register_forward_hook(lambda _module, _inputs, out, i=i: keep(i, out)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def simac_terms(
    denoiser: Denoiser,
    features: list[nn.Module],
    timesteps: Tensor,
    tiles: Tensor,
    clean: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """L_ddpm + lambda * L_feat of N×3×T×T pixels at timesteps drawn from `timesteps`: N values."""
    z = denoiser.encode(tiles)
    t = to_device(draw_timesteps(timesteps, generators), z.device)
    eps = noise(tuple(z.shape[1:]), generators, z.device)
    abar_t = denoiser.alphas_cumprod[t]
    with torch.no_grad(), watched(features) as seen:
        denoiser.predict_trainable(add_noise(denoiser.encode(clean), eps, abar_t), t)
        reference = dict(seen)
    with watched(features) as seen:
        # Not predict_noise: it may cut the graph around the whole network, and the features with it.
        eps_hat = denoiser.predict_trainable(add_noise(z, eps, abar_t), t)
        changed = dict(seen)
    distances = [(changed[i].float() - reference[i].float()).square().flatten(1).mean(1) for i in reference]
    return l_ddpm(eps_hat, eps) + FEATURE_WEIGHT * torch.stack(distances).mean(0)


def select_timesteps(denoiser: Denoiser, tile: Tensor, generator: torch.Generator) -> Tensor:
    """Adaptive greedy time selection (algorithm 1) on a 1×3×T×T tile: the timesteps left, ascending."""
    total = denoiser.timesteps
    half, enough = max(1, total // 50), max(1, total // 10)
    left = torch.ones(total, dtype=torch.bool)
    x, radius, size = tile, LEVELS / 127.5, STEP_LEVELS / 127.5

    def gradient(t: int) -> Tensor:
        leaf = x.detach().requires_grad_()
        z = denoiser.encode(leaf)
        loss = noised_loss(denoiser, z, torch.full((1,), t, device=z.device), [generator])
        return torch.autograd.grad(loss.sum(), leaf)[0]

    while left.sum() > enough:
        candidates = draw_timesteps(left.nonzero().flatten(), [generator] * CANDIDATES).tolist()
        gradients = {t: gradient(t) for t in candidates}
        size_of = {t: float(g.abs().sum()) for t, g in gradients.items()}
        middle = min(max(min(size_of, key=size_of.__getitem__), half), total - half)
        left[middle - half : middle + half] = False
        step = x + size * gradients[max(size_of, key=size_of.__getitem__)].sign()
        x = step.maximum(tile - radius).minimum(tile + radius).clamp(-1, 1)
    # The last drop can take all that is left of a short schedule.
    return left.nonzero().flatten() if left.any() else torch.arange(total)


@dataclass
class SimacLoss(Loss):
    """The `Loss` for `pgd` (clean: 1×3×H×W pixels); its timesteps are selected when it is first prepared."""

    denoiser: Denoiser
    features: list[nn.Module]
    clean: Tensor
    timesteps: Tensor | None = None

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> None:
        """Select the timesteps, on one random tile of the clean picture."""
        if self.timesteps is None:
            tile = random_tile(self.denoiser, self.clean, generator)
            self.timesteps = select_timesteps(self.denoiser, tile, generator)

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        timesteps = self.timesteps
        if timesteps is None:
            raise RuntimeError("SimAC's loss has to be prepared first; it selects its timesteps then.")

        def of_tiles(tiles: Tensor, clean: Tensor, generators: list[torch.Generator]) -> Tensor:
            return simac_terms(self.denoiser, self.features, timesteps, tiles, clean, generators)

        tiled = TiledLoss(self.denoiser, self.clean, of_tiles)
        tiled.partly = self.partly
        yield from tiled.terms(pixels, generator)

    def shrink(self) -> bool:
        return self.denoiser.batching.shrink()


@contextmanager
def simac(denoiser: Denoiser) -> Iterator[MakeLoss]:
    """`make_loss` for `attacks.pgd`, for as long as the block lasts; the network is as it was afterwards.

    Raises `AntiPureError` for a denoiser that does not show its network, or whose network has no decoder blocks.
    """
    features = decoder_blocks(trainable_network(denoiser, "SimAC"))  # found before a patch adds modules
    with alternating(denoiser, lambda clean: SimacLoss(denoiser, features, clean), "SimAC") as make_loss:
        yield make_loss
