"""Being heard within a long network call: one forward or backward may take longer than a user waits for a cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def heeding(networks: Iterable[nn.Module], heed: Callable[[bool], None]) -> Iterator[None]:
    """Call heed(False) before each layer of the networks runs, and heed(True) when the backward pass reaches it.

    It may raise, which leaves the forward or the backward pass. Values and gradients are those of the networks alone,
    and no hook is left on them afterwards. Not for compiled networks, which would be traced with their hooks.
    """

    def before(module: nn.Module, args: Any) -> None:
        heed(False)

    def after(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.requires_grad:
            out.register_hook(passed)

    def passed(gradient: Tensor) -> None:
        heed(True)

    handles = []
    try:
        for layer in layers_of(networks):
            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_of(networks: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules without parts of their own, each once."""
    layers = (layer for network in networks for layer in network.modules() if not any(layer.children()))
    return list(dict.fromkeys(layers))
