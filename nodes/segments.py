"""Borrowed networks that run in segments: cancelled between them, and holding what memory allows for the gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ..methods.diffusion.batching import Batching, PlannedBatching, Sessions
from ..methods.gradients.differentiation import segment
from ..methods.gradients.malloc import return_free_memory
from ..methods.gradients.memory_plan import CheckpointPolicy, SavedBytes, measure
from . import host
from .dynamic_vram import held_weights


class Segments(Sessions):
    """What `ModelDenoiser` and `HostAutoencoder` share; each names its segments and what they cost.

    multiple: pixels of a side to one place of the latent.
    """

    multiple: int
    _in_blocks = False  # whether single blocks run again in the backward pass
    _costs: dict[str, SavedBytes] | None = None

    @property
    @abstractmethod
    def shared_patchers(self) -> tuple:
        """What ComfyUI has to bring onto its device before work."""

    @contextmanager
    def session(self) -> Iterator[Batching]:
        # Weights come first: what is left of the device's memory is for activations.
        with held_weights(*self.shared_patchers), super().session() as batching:
            yield batching

    @abstractmethod
    def _measure_segments(self) -> dict[str, SavedBytes]:
        """The cost of each segment by its name, from `_measure`."""

    def _tidy(self) -> None:
        """Before a segment or block runs: leave when the user has cancelled, a whole step may take minutes."""
        host.check_interrupted()
        if self.device.type == "cpu":
            return_free_memory()

    def _segment(self, name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        plan = self.batching.plan
        policy = CheckpointPolicy.STORE if plan is None else plan.policies[name]

        def run(x: Tensor) -> Tensor:
            self._tidy()
            self._in_blocks = policy.in_blocks
            return function(x)

        return segment(run, x, keep=policy.keep)

    @property
    def batching(self) -> PlannedBatching:
        return cast(PlannedBatching, super().batching)

    def new_batching(self) -> PlannedBatching:
        return PlannedBatching(self._measured, self.memory_allowance())

    def memory_allowance(self) -> float:
        return host.memory_allowance(self)

    def bytes_per_pixel(self) -> float:
        return sum(cost.held.slope for cost in self._measured().values())

    def _measured(self) -> dict[str, SavedBytes]:
        if self._costs is None:
            self._costs = self._measure_segments()
        return self._costs

    def _measure(self, part: Callable[[Tensor], Tensor], channels: int, scale: int, network: nn.Module) -> SavedBytes:
        def blank(side: int) -> Tensor:
            return torch.zeros(1, channels, side // scale, side // scale, device=self.device)

        self._in_blocks = False
        small, large = 4 * self.multiple, 8 * self.multiple
        return measure(part, network, (blank(small), blank(large)), (small**2, large**2))
