"""Several denoisers at once: a picture protected against each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import random_stream
from .pgd import Loss

MODES = ("mean", "worst")


@dataclass(frozen=True)
class CombinedDenoiser:
    """Two or more denoisers whose losses are combined; it cannot predict noise itself.

    mode: "mean" averages the losses; "worst" takes, in every step, the member that is disturbed least.
    """

    members: tuple[Denoiser | CombinedDenoiser, ...]
    mode: str = "mean"

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    @contextmanager
    def session(self) -> Iterator[None]:
        """All members' sessions at once."""
        with ExitStack() as stack:
            for member in members_of(self):
                stack.enter_context(member.session())
            yield

    def combine(self, losses: list[Loss]) -> Loss:
        """One `Loss` from the members' losses, each with its own random stream."""

        def parts(pixels: Tensor, roots: list[int], i: int) -> Iterator[Tensor]:
            return losses[i](pixels, random_stream(roots[i]))

        def value(pixels: Tensor, roots: list[int], i: int) -> float:
            with torch.no_grad():
                return sum(float(term) for term in parts(pixels, roots, i))

        def loss(pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
            roots = [int(torch.randint(2**62, (), generator=generator)) for _ in losses]
            if self.mode == "worst":
                least = min(range(len(losses)), key=lambda i: value(pixels, roots, i))
                yield from parts(pixels, roots, least)
                return
            for i in range(len(losses)):
                for term in parts(pixels, roots, i):
                    yield term / len(losses)

        # Not `any`: after an out-of-memory error nobody knows whose batch was too large.
        loss.shrink = lambda: sum([one.shrink() for one in losses]) > 0
        return loss


def combine(first: Denoiser | CombinedDenoiser, second: Denoiser | CombinedDenoiser, mode: str) -> CombinedDenoiser:
    """Both denoisers as one. A chain of one mode counts every denoiser once."""
    if mode not in MODES:
        raise AntiPureError(f"There is no mode '{mode}'; denoisers combine by {' or '.join(MODES)}.")
    members: list = []
    for denoiser in (first, second):
        same = isinstance(denoiser, CombinedDenoiser) and denoiser.mode == mode
        members += denoiser.members if same else [denoiser]
    return CombinedDenoiser(tuple(members), mode)


def members_of(denoiser: Denoiser | CombinedDenoiser) -> list[Denoiser]:
    """Every single denoiser behind this one, itself if it is one; each once."""
    if not isinstance(denoiser, CombinedDenoiser):
        return [denoiser]
    found = [single for member in denoiser.members for single in members_of(member)]
    return list({id(single): single for single in found}.values())
