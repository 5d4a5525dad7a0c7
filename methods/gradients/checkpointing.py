"""Gradient checkpointing for networks that somebody else has built: their blocks run again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). Only the inputs of the blocks are held, and the
activations of one block at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .differentiation import counting


def blocks(network: nn.Module) -> list[nn.Module]:
    """The building blocks of a network, in the order it holds them: residual, transformer and resampling blocks.

    Trunks are opened, from the network itself downwards: containers, modules without a forward of their own and
    modules that keep their parts in a ModuleList. What is left is a block if it has children; a bare layer saves
    little more than its input.
    """
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if _is_trunk(child):
                walk(child)
            elif next(child.children(), None) is not None:
                found.append(child)

    walk(network)
    return list(dict.fromkeys(found))


def _is_trunk(module: nn.Module) -> bool:
    own_forward = type(module).forward is not nn.Module.forward
    lists = any(isinstance(child, (nn.ModuleList, nn.ModuleDict)) for child in module.children())
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) or not own_forward or lists


@contextmanager
def checkpointed(
    modules: list[nn.Module], enabled: Callable[[], bool], before: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Let the modules run again in the backward pass, whenever `enabled()` is true and gradients are recorded.

    before: called before each of their runs.
    The modules have to be deterministic. Dicts among their arguments are passed on as copies: a network may write
    the number of the current block into one that all its blocks share, and the second run has to see the first
    run's value. Their own `forward` is back in place afterwards, however the block is left.
    """

    def wrap(forward: Callable) -> Callable:
        def once(*args, **kwargs):
            before()
            return forward(*map(_own, args), **{key: _own(value) for key, value in kwargs.items()})

        def run(*args, **kwargs):
            if not (torch.is_grad_enabled() and enabled()):
                return forward(*args, **kwargs)
            own = {key: _own(value) for key, value in kwargs.items()}
            return checkpoint(once, *map(_own, args), use_reentrant=False, preserve_rng_state=False, **own)

        return run

    with _replaced_forward(modules, wrap):
        yield


def _own(value):
    return dict(value) if isinstance(value, dict) else value


@contextmanager
def _replaced_forward(modules: list[nn.Module], wrap: Callable[[Callable], Callable]) -> Iterator[None]:
    replaced: list[tuple[nn.Module, Callable | None]] = []
    try:
        for module in modules:
            replaced.append((module, vars(module).get("forward")))
            module.forward = wrap(module.forward)
        yield
    finally:
        for module, own in reversed(replaced):
            if own is None:
                del module.forward
            else:
                module.forward = own


@contextmanager
def bytes_of_blocks(modules: list[nn.Module], weights: set[int]) -> Iterator[list[int]]:
    """Collect in a list what each call of a module saves for its backward, in bytes; there is no backward after it.

    weights: storages that are not counted (`differentiation.storages`).
    """
    found: list[int] = []

    def counted(forward: Callable) -> Callable:
        def run(*args, **kwargs):
            with counting(weights) as saved:
                out = forward(*args, **kwargs)
            found.append(sum(saved.values()))
            return out

        return run

    with _replaced_forward(modules, counted):
        yield found
