"""A surrogate that is fine-tuned in turn with the perturbation: the min-max loop of Anti-DreamBooth's ASPL.

Van Le et al., "Anti-DreamBooth", ICCV 2023, algorithm 1. Per round, theta being the surrogate's weights:

    theta' = theta trained on clean pictures            (3 steps)
    delta  = delta + PGD steps against theta'           (6 steps)
    theta  = theta trained on the perturbed pictures    (3 steps)

Differences from the paper: theta is a LoRA on the denoiser's network (rank 8, AdamW 1e-4), not all of its weights and
the text encoder's; there are no other clean pictures of the subject, so the picture itself is trained on, in random
tiles; there is no prior preservation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...kernels.transfer import to_device
from ..attacks.loss import Loss, MakeLoss
from ..attacks.tiled_loss import random_tile
from ..diffusion.denoiser import Denoiser, trainable_network
from ..diffusion.loss import noised_loss
from ..errors import AntiPureError
from ..lora_patching.low_rank import PatchConfig
from ..lora_patching.patch import AppliedPatch, new_patch
from ..pictures import random_stream

PATCH = PatchConfig(rank=8, gate="none")
TRAINING_STEPS, PGD_STEPS = 3, 6
LEARNING_RATE = 1e-4


@contextmanager
def alternating(denoiser: Denoiser, inner: MakeLoss, name: str) -> Iterator[MakeLoss]:
    """`make_loss` for `attacks.pgd`: `inner`'s losses against a surrogate that is trained between the steps.

    Each picture gets a new surrogate. The network is as it was when the block ends, however it ends.
    """
    network = trainable_network(denoiser, name)
    applied: AppliedPatch | None = None

    def make_loss(clean: Tensor) -> Loss:
        nonlocal applied
        loss = inner(clean)
        if applied is not None:
            applied.remove()
        applied = new_patch(network, PATCH)
        return AlternatingLoss(denoiser, applied, clean, loss)

    try:
        yield make_loss
    finally:
        if applied is not None:
            with torch.inference_mode(False):
                applied.remove()


class AlternatingLoss(Loss):
    """A `Loss` that trains the surrogate before every `PGD_STEPS`-th step. inner: the loss against the surrogate,
    which is prepared once, before the surrogate is trained at all.
    """

    def __init__(self, denoiser: Denoiser, applied: AppliedPatch, clean: Tensor, inner: Loss):
        self.denoiser, self.applied, self.clean, self.inner = denoiser, applied, clean, inner
        self.theta = applied.snapshot()
        self.step = 0
        self.trained_for = -1  # a step may be tried again after running out of memory
        self._freeze(True)

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> None:
        if self.step % PGD_STEPS or self.trained_for == self.step:
            return
        root = self._root(generator)
        if self.step == 0:
            self.inner.prepare(pixels, random_stream(root, 2))
        self._next_surrogate(pixels, root)
        self.trained_for = self.step

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        self._root(generator)  # drawn here, too: what follows does not depend on whether the surrogate was trained
        self.inner.partly = self.partly
        yield from self.inner.terms(pixels, generator)

    def stepped(self) -> None:
        self.step += 1

    @staticmethod
    def _root(generator: torch.Generator) -> int:
        return int(torch.randint(2**62, (), generator=generator))

    def shrink(self) -> bool:
        return self.inner.shrink()

    def _next_surrogate(self, perturbed: Tensor, root: int) -> None:
        self.applied.load(self.theta)
        if self.step:
            self._train(perturbed, root, 1)
            self.theta = self.applied.snapshot()
        self._train(self.clean, root, 0)

    def _train(self, pixels: Tensor, root: int, phase: int) -> None:
        denoiser, parameters = self.denoiser, self.applied.parameters()
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE)
        finite = torch.ones((), dtype=torch.bool, device=denoiser.device)
        self._freeze(False)
        try:
            for step in range(TRAINING_STEPS):
                generator = random_stream(root, phase, step)
                with torch.no_grad():
                    z = denoiser.encode(random_tile(denoiser, pixels, generator))
                t = to_device(torch.randint(denoiser.timesteps, (1,), generator=generator), z.device)
                loss = noised_loss(denoiser, z, t, [generator], trainable=True).mean()
                finite &= torch.isfinite(loss.detach())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            if not finite:  # looked at once: each look waits for a GPU
                raise AntiPureError("The surrogate's loss is not finite; use a higher precision.")
        finally:
            optimizer.zero_grad(set_to_none=True)
            self._freeze(True)

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.applied.parameters():
            parameter.requires_grad_(not frozen)
