"""Gradients through networks that somebody else has loaded, without a second copy of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import AntiPureError

_GIVE_UP_SCALE = 2.0**-40
_NOTED: ContextVar[list[Tensor] | None] = ContextVar("antipure_overflows", default=None)


@contextmanager
def plain_weights(*owners: object) -> Iterator[None]:
    """See every inference tensor of the owners as an ordinary one over the *same storage*; the originals return.

    Autograd refuses to save inference tensors, and loaders that run in inference mode make nothing else. No memory
    is allocated, and the very same objects are back in place afterwards, however the block is left. Weights that
    require a gradient are seen as ones that do not.

    owners: modules (parameters, buffers and tensors kept as plain attributes of any submodule), or other objects
    (their attributes). Call it with inference mode switched off.
    Raises `AntiPureError` for quantised weights, which have no such view.
    """
    replaced: list[tuple[dict, str, Tensor]] = []
    plain: dict[int, Tensor] = {}  # by the original's id: tied weights stay tied
    try:
        for table in _tables(owners):
            for name, tensor in list(table.items()):
                if isinstance(tensor, Tensor) and (tensor.is_inference() or tensor.requires_grad):
                    if id(tensor) not in plain:
                        plain[id(tensor)] = _same_storage(name, tensor)
                    replaced.append((table, name, tensor))
                    table[name] = plain[id(tensor)]
        yield
    finally:
        for table, name, original in reversed(replaced):
            table[name] = original


def _tables(owners: tuple[object, ...]) -> Iterator[dict]:
    for owner in owners:
        if not isinstance(owner, nn.Module):
            yield vars(owner)
            continue
        for module in owner.modules():
            yield module._parameters
            yield module._buffers
            yield vars(module)


def _same_storage(name: str, tensor: Tensor) -> Tensor:
    # nn.Parameter(x) of a subclass keeps the subclass, so an exact type tells GGUF, NF4 and fp8-scaled weights.
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer if hasattr(nn, "Buffer") else Tensor):
        raise AntiPureError(
            f"The weight '{name}' is quantised ({type(tensor).__name__}) and carries no gradient; "
            "load the model in fp16, bf16 or fp32."
        )
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain


def plain_copy(value):
    """Tensors, and those inside dicts, lists and tuples, copied: ordinary ones when inference mode is off."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: plain_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain_copy(item) for item in value)
    return value


def segment(function: Callable[[Tensor], Tensor], x: Tensor, *, keep: bool) -> Tensor:
    """function(x), differentiated on its own: one link of a chain of vector-Jacobian products.

    keep: hold the activations until the backward pass. Otherwise only x is held and function runs again there, so
    that a chain of segments never has more than one segment's activations in memory.

    The incoming gradient is scaled by a power of two to a largest value near 1 and back afterwards: a mean over a
    picture's pixels would otherwise vanish in the half-precision arithmetic inside the function.
    function must be deterministic, and its parameters get no gradient.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return function(x)
    return _Segment.apply(x, function, keep)


@contextmanager
def overflows_noted(enabled: bool = True) -> Iterator[list[Tensor]]:
    """Inside, segments on a GPU do not look whether a gradient overflowed, which waits: they note it in the list.

    Whoever opens the block looks once, by `overflowed`, and where one has takes the gradient again outside of it.
    """
    noted: list[Tensor] = []
    token = _NOTED.set(noted if enabled else None)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def overflowed(noted: list[Tensor]) -> bool:
    """Whether a gradient did, by what `overflows_noted` gave. Waits for a GPU where there is anything to look at."""
    return bool(noted) and bool(torch.stack([flag.to(noted[0].device) for flag in noted]).any())


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: Callable[[Tensor], Tensor], keep: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        ctx.noted = _NOTED.get()  # now: the backward pass has a thread of its own
        ctx.kept = None
        if not keep:
            with torch.no_grad():
                return function(x)
        ctx.kept = _graph(function, x)
        return ctx.kept[1].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None
        largest = gradient.abs().amax()
        scale = torch.exp2(-largest.clamp(min=1e-37).log2().ceil())
        shrink = 1.0
        while True:
            leaf, output = kept or _graph(ctx.function, x)
            kept = None
            (result,) = torch.autograd.grad(output, leaf, gradient * (scale * shrink))
            # Half precision can overflow on the way: try again with less. What was not finite before stays so.
            if ctx.noted is not None and result.device.type != "cpu":
                ctx.noted.append(torch.isfinite(largest) & ~torch.isfinite(result).all())
                return result / scale, None, None
            if torch.isfinite(result).all() or shrink <= _GIVE_UP_SCALE or not torch.isfinite(largest):
                return result / (scale * shrink), None, None
            shrink *= 2.0**-10


def _graph(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return leaf, function(leaf)


def saved_bytes(function: Callable[[Tensor], Tensor], x: Tensor, *modules: nn.Module) -> int:
    """Bytes that autograd saves in one call of function(x), weights of the modules not counted."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        with counting(storages(*modules)) as saved:
            function(leaf)
    return sum(saved.values())


def storages(*modules: nn.Module) -> set[int]:
    """Addresses of the memory that the modules' parameters stand in."""
    return {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}


@contextmanager
def counting(weights: set[int]) -> Iterator[dict[int, int]]:
    """Count what autograd saves inside the block: bytes by address, weights not counted.

    There is no backward pass after it.
    """
    seen: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> None:
        # Returns nothing to save: an operation that saves its own output would hold itself, and the graph, for ever.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # a freed storage would hand its address to the next tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
            yield seen
    finally:
        kept.clear()  # not left to the hook, which outlives this call with the list
