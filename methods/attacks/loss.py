"""What `pgd` maximises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..errors import AntiPureError


class Loss(ABC):
    """A function of the pixels, as terms whose sum is maximised.

    Terms are differentiated one after another, so that only one term's graph is in memory at a time, and what is in
    pixels.grad by then may be added to in place (`kernels.tiles.cut`).
    """

    # Told what share of `value_and_gradient` is done, within 0..1, by a loss that knows; may raise to cancel.
    partly: Callable[[float], None] = staticmethod(lambda share: None)

    def prepare(self, pixels: Tensor, generator: torch.Generator) -> None:  # noqa: B027
        """Before each step, and again where it is tried again for want of memory: what changes with the perturbation.

        pixels: as for `terms`, without gradient. generator: the step's own stream, as `terms` gets it, from its start.
        """

    @abstractmethod
    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Scalar terms at pixels 1×3×H×W in [-1, 1] (B× where pictures run together), random where the stream is."""

    def value_and_gradient(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The sum of the terms, and its gradient with respect to the pixels, B×3×H×W.

        pixels: B×3×H×W in [-1, 1], a leaf that requires gradient. Raises `AntiPureError` for terms that do not depend
        on it.
        """
        pixels.grad = torch.zeros_like(pixels)
        total = torch.zeros((), device=pixels.device)
        for term in self.terms(pixels, generator):
            if not term.requires_grad:
                raise AntiPureError("The loss does not depend on the picture; give one of its terms a weight.")
            term.backward()
            total += term.detach().to(total.device)  # a host may keep a VAE on another device
        return total, pixels.grad

    def stepped(self) -> None:  # noqa: B027
        """Once after each step that this loss's gradient was taken for."""

    def shrink(self) -> bool:
        """When memory ran out: True when the next attempt will ask for less of it."""
        return False


def share_of(partly: Callable[[float], None], part: int, parts: int) -> Callable[[float], None]:
    """The `Loss.partly` of one of several losses that take their turns: each counts as much as any other."""
    return lambda share: partly((part + share) / parts)


MakeLoss = Callable[[Tensor], Loss]  # from the clean pixels, 1×3×H×W in [-1, 1]


class FunctionLoss(Loss):
    """A `Loss` without state. function: from pixels and a random stream to terms, as `Loss.terms`."""

    def __init__(self, function: Callable[[Tensor, torch.Generator], Iterable[Tensor]]):
        self.function = function

    def terms(self, pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        yield from self.function(pixels, generator)
