"""Losses of different kinds at once: their gradients are brought to one size before they are added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..pictures import random_stream
from .loss import Loss, share_of


class BalancedLoss(Loss):
    """Several losses that count by their weights, whatever the scale each of them is measured in.

    The gradient is the sum of the members' gradients, each divided by its mean absolute value where it is not 0 (a loss
    may look at a part of the picture only) and multiplied by its weight. A sign step follows the larger gradient at
    every pixel: without this one member alone would lead.
    losses, weights: as many of each, at least one; a member's gradient that is 0 everywhere stays 0.
    memory: where a member did not look in a step (its gradient is 0) the one it gave last counts, times this for every
        step since; 0: nothing does. In 0..1.
    """

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float], memory: float = 0.0):
        self.members = list(zip(losses, weights, strict=True))
        self.memory = memory
        self.remembered: list[Tensor | None] = [None] * len(self.members)
        self.latest: list[Tensor] = []

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> None:
        for loss, _, stream in self._drawn(generator):
            loss.prepare(pixels, stream)

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """All members' terms as they are, by their weights; only the gradient is balanced."""
        for loss, weight, stream in self._drawn(generator):
            for term in loss.terms(pixels, stream):
                yield weight * term

    def value_and_gradient(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        total, balanced = torch.zeros((), device=pixels.device), torch.zeros_like(pixels)
        self.latest = []
        drawn = zip(self._drawn(generator), self.remembered, strict=True)
        for i, ((loss, weight, stream), before) in enumerate(drawn):
            loss.partly = share_of(self.partly, i, len(self.members))
            value, gradient = loss.value_and_gradient(pixels, stream)
            total += weight * value
            gradient = gradient / mean_size(gradient)
            if self.memory:
                if before is not None:
                    gradient = torch.where(gradient == 0, self.memory * before, gradient)
                self.latest.append(gradient)
                gradient = gradient / mean_size(gradient)
            balanced += weight * gradient
        return total, balanced

    def stepped(self) -> None:
        for loss, _ in self.members:
            loss.stepped()
        if self.memory:  # only now: a step that ran out of memory is taken again
            self.remembered = list(self.latest)

    def shrink(self) -> bool:
        return sum([loss.shrink() for loss, _ in self.members]) > 0

    def _drawn(self, generator: torch.Generator) -> list[tuple[Loss, float, torch.Generator]]:
        """The members, each with its own stream."""
        roots = [int(torch.randint(2**62, (), generator=generator)) for _ in self.members]
        return [(loss, weight, random_stream(root)) for (loss, weight), root in zip(self.members, roots, strict=True)]


def mean_size(gradient: Tensor) -> Tensor:
    """Mean absolute value over what is not 0; 1 where all is. What is not finite stays so, for `pgd` to find."""
    sizes = gradient.abs()
    mean = sizes.sum() / (sizes != 0).sum().clamp(min=1)
    return torch.where(mean == 0, torch.ones_like(mean), mean)


class ShapedLoss(Loss):
    """A loss whose gradient goes through a function, 1×3×H×W to the same, before others are added to it."""

    def __init__(self, loss: Loss, shape: Callable[[Tensor], Tensor]):
        self.loss, self.shape = loss, shape

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> None:
        self.loss.prepare(pixels, generator)

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        yield from self.loss.terms(pixels, generator)

    def value_and_gradient(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.loss.partly = self.partly
        value, gradient = self.loss.value_and_gradient(pixels, generator)
        return value, self.shape(gradient)

    def stepped(self) -> None:
        self.loss.stepped()

    def shrink(self) -> bool:
        return self.loss.shrink()
