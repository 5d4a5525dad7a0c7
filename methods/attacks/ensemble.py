"""Several targets at once: a picture protected against each of several denoisers, and against VAEs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..diffusion.autoencoder import BUNDLED_VAE, Autoencoder, load_autoencoder
from ..diffusion.batching import Batching
from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..pictures import random_stream
from .loss import Loss, share_of

MODES = ("mean", "worst")


@dataclass(frozen=True)
class CombinedBatching:
    """How the members' tiles are batched in a session of all of them."""

    members: list[AnyBatching]

    @property
    def limit(self) -> int | None:
        """The smallest of the members' limits, None where no member has one."""
        return min((member.limit for member in self.members if member.limit is not None), default=None)


AnyBatching = Batching | CombinedBatching


@dataclass(frozen=True)
class VaeTargets:
    """VAEs alone, without a diffusion model: targets of what acts on latents."""

    autoencoders: tuple[Autoencoder, ...]

    @property
    def device(self) -> torch.device:
        return self.autoencoders[0].device

    @contextmanager
    def session(self) -> Iterator[CombinedBatching]:
        """All VAEs' sessions at once."""
        with ExitStack() as stack:
            yield CombinedBatching([stack.enter_context(one.session()) for one in self.autoencoders])


def bundled_vae_targets(device: torch.device | str = "cpu") -> VaeTargets:
    """Our own encoder as a target, for whoever wired no VAE: it moves real ones too, less than they themselves do."""
    return VaeTargets((load_autoencoder(BUNDLED_VAE, device=device),))


@dataclass(frozen=True)
class CombinedDenoiser:
    """Two or more targets whose losses are combined; it cannot predict noise itself.

    mode: "mean" averages the losses; "worst" takes, in every step, the member that is disturbed least.
    """

    members: tuple[Target, ...]
    mode: str = "mean"

    @property
    def device(self) -> torch.device:
        """The first denoiser's, else the first member's: a host may keep VAEs on the CPU and denoisers on a GPU."""
        denoisers = (member for member in members_of(self) if isinstance(member, Denoiser))
        return next(denoisers, self.members[0]).device

    @contextmanager
    def session(self) -> Iterator[CombinedBatching]:
        """All members' sessions at once."""
        with ExitStack() as stack:
            sessions = [cast(AbstractContextManager[AnyBatching], member.session()) for member in members_of(self)]
            yield CombinedBatching([stack.enter_context(session) for session in sessions])

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
            values = self._values(pixels, roots)
            least = min(range(len(roots)), key=values.__getitem__)
            self.taken = [self.losses[least]]
            self.losses[least].partly = share_of(self.partly, 1, 2)  # choosing it took about half of the work
            yield from self.losses[least].terms(pixels, random_stream(roots[least]))
            return
        for i, (loss, root) in enumerate(zip(self.losses, roots, strict=True)):
            loss.partly = share_of(self.partly, i, len(roots))
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

    def _values(self, pixels: Tensor, roots: list[int]) -> list[float]:
        terms: list[list[Tensor]] = []
        for loss, root in zip(self.losses, roots, strict=True):
            loss.partly = Loss.partly
            with torch.no_grad():
                terms.append([term.to(pixels.device) for term in loss.terms(pixels, random_stream(root))])
        # Looked at all together: each look waits for a GPU.
        values = iter(torch.stack([term for each in terms for term in each]).tolist())
        return [sum(next(values) for _ in each) for each in terms]


Target = Denoiser | VaeTargets | CombinedDenoiser  # what a protection may be made against


def combine(first: Target, second: Target, mode: str) -> CombinedDenoiser:
    """Both targets as one. A chain of one mode counts every member once."""
    if mode not in MODES:
        raise AntiPureError(f"There is no mode '{mode}'; denoisers combine by {' or '.join(MODES)}.")
    members: list[Target] = []
    for target in (first, second):
        if isinstance(target, CombinedDenoiser) and target.mode == mode:
            members += target.members
        else:
            members.append(target)
    return CombinedDenoiser(tuple(members), mode)


def members_of(target: Target) -> list[Denoiser | VaeTargets]:
    """Every single target behind this one, itself if it is one; each once."""
    if not isinstance(target, CombinedDenoiser):
        return [target]
    found = [single for member in target.members for single in members_of(member)]
    return list({id(single): single for single in found}.values())


def restricted(target: Target, serves: Callable[[Denoiser | VaeTargets], bool]) -> Target | None:
    """The members that serve, combined as they were; None where none does."""
    if not isinstance(target, CombinedDenoiser):
        return target if serves(target) else None
    kept = [member for member in (restricted(one, serves) for one in target.members) if member is not None]
    if len(kept) > 1:
        return target if tuple(kept) == target.members else CombinedDenoiser(tuple(kept), target.mode)
    return kept[0] if kept else None


def without_vaes(target: Target) -> Denoiser | CombinedDenoiser | None:
    """The denoisers of a target, combined as they were; None where it has none."""
    return cast(Denoiser | CombinedDenoiser | None, restricted(target, lambda member: isinstance(member, Denoiser)))


def encodes(target: Denoiser | VaeTargets) -> bool:
    """Whether a single target has a VAE."""
    return isinstance(target, VaeTargets) or target.latent


def encoders_of(target: Target) -> list[Autoencoder | Denoiser]:
    """Everything with a VAE behind a target: VAEs, and latent denoisers, which encode with theirs; each once.

    Two that work over the same VAE of a host, which they hold as `vae`, count as one.
    """
    found: dict[int, Autoencoder | Denoiser] = {}
    for member in members_of(target):
        if encodes(member):
            ones = member.autoencoders if isinstance(member, VaeTargets) else (member,)
            for one in ones:
                found.setdefault(id(getattr(one, "vae", one)), one)
    return list(found.values())
