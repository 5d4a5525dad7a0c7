"""Several denoisers at once: a picture protected against each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.batching import Batching
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import random_stream
from .loss import Loss

MODES = ("mean", "worst")


@dataclass(frozen=True)
class CombinedBatching:
    """How the members' tiles are batched in a session of all of them."""

    members: list[Batching]

    @property
    def limit(self) -> int | None:
        """The smallest of the members' limits, None where no member has one."""
        return min((member.limit for member in self.members if member.limit is not None), default=None)


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
    def session(self) -> Iterator[CombinedBatching]:
        """All members' sessions at once."""
        with ExitStack() as stack:
            yield CombinedBatching([stack.enter_context(member.session()) for member in members_of(self)])

    def combine(self, losses: list[Loss]) -> Loss:
        """One `Loss` from the members' losses, each with its own random stream."""
        return CombinedLoss(losses, self.mode)


class CombinedLoss(Loss):
    """The mean of several losses or, in the mode "worst", in every step the one that is smallest."""

    def __init__(self, losses: list[Loss], mode: str):
        self.losses, self.mode = losses, mode
        self.taken = losses  # by the latest step

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> None:
        for loss, root in zip(self.losses, self._roots(generator), strict=True):
            loss.prepare(pixels, random_stream(root))

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        roots = self._roots(generator)
        if self.mode == "worst":
            least = min(range(len(roots)), key=lambda i: self._value(pixels, roots[i], i))
            self.taken = [self.losses[least]]
            yield from self.losses[least].terms(pixels, random_stream(roots[least]))
            return
        for loss, root in zip(self.losses, roots, strict=True):
            for term in loss.terms(pixels, random_stream(root)):
                yield term / len(roots)

    def stepped(self) -> None:
        for loss in self.taken:
            loss.stepped()

    def shrink(self) -> bool:
        # Not `any`: after an out-of-memory error nobody knows whose batch was too large.
        return sum([loss.shrink() for loss in self.losses]) > 0

    def _roots(self, generator: torch.Generator) -> list[int]:
        return [int(torch.randint(2**62, (), generator=generator)) for _ in self.losses]

    def _value(self, pixels: Tensor, root: int, i: int) -> float:
        with torch.no_grad():
            return sum(float(term) for term in self.losses[i].terms(pixels, random_stream(root)))


def combine(first: Denoiser | CombinedDenoiser, second: Denoiser | CombinedDenoiser, mode: str) -> CombinedDenoiser:
    """Both denoisers as one. A chain of one mode counts every denoiser once."""
    if mode not in MODES:
        raise AntiPureError(f"There is no mode '{mode}'; denoisers combine by {' or '.join(MODES)}.")
    members: list = []
    for denoiser in (first, second):
        if isinstance(denoiser, CombinedDenoiser) and denoiser.mode == mode:
            members += denoiser.members
        else:
            members.append(denoiser)
    return CombinedDenoiser(tuple(members), mode)


def members_of(denoiser: Denoiser | CombinedDenoiser) -> list[Denoiser]:
    """Every single denoiser behind this one, itself if it is one; each once."""
    if not isinstance(denoiser, CombinedDenoiser):
        return [denoiser]
    found = [single for member in denoiser.members for single in members_of(member)]
    return list({id(single): single for single in found}.values())
