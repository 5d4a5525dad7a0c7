"""How many tiles run at a time: the memory side of a piece of work, which a denoiser's session holds.

A `Denoiser` says what a tile costs; how much memory there is, and what running out of it has taught, belongs to the
work and is forgotten with it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..gradients.memory_plan import CheckpointPlan, SavedBytes, plan
from ..gradients.reproducible import is_reproducible

DEFAULT_MEMORY_BYTES = 768 * 2**20
SEGMENTS = ("encode", "predict", "decode")  # of a latent denoiser, in the order in which they run
log = logging.getLogger(__name__)


class Batching:
    """Batches of tiles within a bound of memory, smaller after running out of it.

    bytes_per_pixel: activation bytes that one forward keeps for its backward, per pixel of a tile; asked when needed.
    memory_bytes: for the activations of one batch. limit: most tiles at a time, None where memory alone decides.
    """

    def __init__(self, bytes_per_pixel: Callable[[], float], memory_bytes: float = DEFAULT_MEMORY_BYTES):
        self.bytes_per_pixel, self.memory_bytes = bytes_per_pixel, memory_bytes
        self.limit: int | None = None
        self.latest = 1
        self.calls = 0  # of the network, in the latest walk over all tiles

    def size(self, height: int, width: int, forwards: int = 1, at_once: int = 1) -> int:
        """How many tiles fit `memory_bytes` when each keeps the activations of `forwards` forwards.

        at_once: how many of these run as one batch.
        """
        need = self.bytes_per_pixel() * height * width * forwards
        return max(1, int(self.memory_bytes / max(need, 1)))

    def hold(self, height: int, width: int) -> None:
        """Before a single picture of this size runs: decide what of its activations is held. Here always all."""

    def batches(self, count: int, height: int, width: int, forwards: int = 1, at_once: int = 1) -> Iterator[slice]:
        """Slices that walk over `count` tiles of height×width in memory-bounded batches."""
        size = min(self.size(height, width, forwards, at_once), self.limit or count, max(count, 1))
        self.latest, self.calls = size, -(-count // size) * forwards
        return (slice(i, min(i + size, count)) for i in range(0, count, size))

    def shrink(self) -> bool:
        """After running out of memory: halve the batches from now on. False when one tile is already the batch, and
        where other batches, which round differently, are ruled out (`reproducible`).
        """
        if self.latest == 1 or is_reproducible():
            return False
        self.limit = self.latest // 2
        log.warning("Out of memory: going on with at most %d tiles at a time.", self.limit)
        return True


class PlannedBatching(Batching):
    """Batches of a denoiser whose encoder, network and decoder can run again in the backward pass, and hold less then.

    costs: of these three segments, asked when needed. plan: which of them hold what, by the latest `size`.
    """

    def __init__(self, costs: Callable[[], dict[str, SavedBytes]], memory_bytes: float):
        super().__init__(lambda: sum(cost.held.slope for cost in costs().values()), memory_bytes)
        self.costs = costs
        self.plan: CheckpointPlan | None = None

    def size(self, height: int, width: int, forwards: int = 1, at_once: int = 1) -> int:
        """As many tiles as fit; the more of a single tile's activations fit, the fewer are computed again."""
        calls = dict(zip(SEGMENTS, (1, forwards, 1), strict=True))
        self.plan = plan(self.costs(), calls, height * width, self.memory_bytes, at_once)
        return self.plan.count(self.memory_bytes)

    def hold(self, height: int, width: int) -> None:
        self.size(height, width)
        self.latest = 1

    def shrink(self) -> bool:
        if self.plan is None or (self.latest == 1 and not self.plan.leaner) or is_reproducible():
            return False
        self.memory_bytes = (self.plan.fixed + self.latest * self.plan.each) / 2
        log.warning("Out of memory: going on with half as much for activations, which is slower.")
        return True


class Sessions(ABC):
    """What works in sessions: a network of its own or a borrowed one, whose tiles are batched by what fits.

    memory_bytes: for the activations of one batch of tiles, where nobody knows better (see `memory_allowance`).
    allowance: tells how many bytes a session may take, given by whoever manages the device's memory.
    """

    memory_bytes: float = DEFAULT_MEMORY_BYTES
    allowance: Callable[[Any], float] | None = None
    _batching: Batching | None = None

    @contextmanager
    def session(self) -> Iterator[Batching]:
        """To be entered once around a piece of work: how its tiles are batched is decided anew, and can be read after.

        A network over borrowed weights prepares and returns them (`prepared`).
        """
        before, self._batching = self._batching, self.new_batching()
        try:
            with self.prepared():
                yield self._batching
        finally:
            self._batching = before

    def prepared(self) -> AbstractContextManager:
        """What has to be made ready for a session, and is given back after it."""
        return nullcontext()

    @property
    def batching(self) -> Batching:
        """The session's; outside of any one that lasts."""
        if self._batching is None:
            self._batching = self.new_batching()
        return self._batching

    def new_batching(self) -> Batching:
        """How a session's tiles are batched, to begin with."""
        return Batching(self.bytes_per_pixel, self.memory_allowance())

    def memory_allowance(self) -> float:
        """Bytes that a session may take for activations: what `allowance` says, else `memory_bytes`."""
        return self.memory_bytes if self.allowance is None else self.allowance(self)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network's weights are."""

    @abstractmethod
    def bytes_per_pixel(self) -> float:
        """Activation bytes that one forward keeps for its backward, per input pixel."""
