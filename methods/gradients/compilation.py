"""torch.compile for a network, as an option with a way back."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..memory import is_out_of_memory

log = logging.getLogger(__name__)

OFF, COMPILED, CUDA_GRAPHS = "off", "torch.compile", "CUDA graphs"
MODES = (OFF, COMPILED, CUDA_GRAPHS)
_HANGS = "cudaMallocAsync"  # ComfyUI's usual allocator on NVIDIA: recording over it never came to an end on an H200
# How far results may be apart, relative: rounding, more of it in half precision. torch 2.13's compiler for CPUs gets
# the gradient of the bundled network wrong by more than a tenth.
SINGLE, HALF = 0.01, 0.05
Call = Callable[[Tensor, Tensor], Tensor]


class CompiledNetwork:
    """Calls a network as it is, or through torch.compile where that is asked for and can be done.

    network: called as network(x, t).sample. mode: one of `MODES`; with `CUDA_GRAPHS` torch.compile also records what it
    launches on a GPU and replays it (its "reduce-overhead"), each batch size anew; on other devices, and over an
        allocator that it does not end with, it does not.
    options: of torch.compile.
    Compiling takes place at the first call, for each shape and with or without a gradient, and takes up to minutes.
    Then the result and the gradient are compared with the network's own, because compilers make mistakes. Where
    compiling fails (no C++ compiler, an operation it cannot express) or the two differ, that is said once and the
    network runs as it is from then on. A network that was changed since, by LoRA layers or hooks, runs as it is while
    it is changed: compiled code would not see them. Results differ from the plain network's by rounding.
    """

    def __init__(self, network: nn.Module, mode: str = COMPILED, **options):
        self.network = network
        if mode == CUDA_GRAPHS and torch.cuda.is_available() and torch.cuda.get_allocator_backend() == _HANGS:
            log.warning(
                "CUDA graphs do not end with the allocator %s; the network is compiled without them. ComfyUI's option "
                "--disable-cuda-malloc takes the other allocator.",
                _HANGS,
            )
            mode = COMPILED
        self.mode = mode
        if mode == CUDA_GRAPHS:
            options["mode"] = "reduce-overhead"
        self._compiled = None if mode == OFF else torch.compile(self.plain, **options)
        self._checked: set[tuple] = set()
        self._modules = self._state()

    @property
    def active(self) -> bool:
        """Whether it is compiled, as far as is known by now."""
        return self._compiled is not None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """network(x, t).sample"""
        compiled = self._compiled
        if compiled is None or self._state() != self._modules:
            return self.plain(x, t)
        try:
            case = (tuple(x.shape), torch.is_grad_enabled())
            if case not in self._checked:
                apart = self._apart(compiled, x, t)
                if not apart <= (HALF if torch.is_autocast_enabled(x.device.type) else SINGLE):
                    self._compiled = None
                    message = "Compiled, the network gives other results (%.2g apart); it runs as it is from now on."
                    log.warning(message, apart)
                    return self.plain(x, t)
                self._checked.add(case)
            out = compiled(x, t)
            # A replay writes where the last one wrote: what is handed out must not be overwritten by the next.
            return out.clone() if self.mode == CUDA_GRAPHS else out
        except Exception as error:  # compilers raise nearly anything
            if is_out_of_memory(error):
                raise
            self._compiled = None
            log.warning("The network could not be compiled (%s); it runs as it is from now on.", type(error).__name__)
        return self.plain(x, t)

    def plain(self, x: Tensor, t: Tensor) -> Tensor:
        """The network as it is."""
        return self.network(x, t).sample

    def _apart(self, compiled: Call, x: Tensor, t: Tensor) -> float:
        """How far the two ways are apart, relative: in the result, or its gradient where gradients are asked for."""
        # The backward pass, too, is compiled here, where what it raises can be caught.
        mine, plain = self._outcome(compiled, x, t), self._outcome(self.plain, x, t)
        apart = [(a - b).norm() / b.norm().clamp(min=1e-30) for a, b in zip(mine, plain, strict=True)]
        return float(torch.stack(apart).max())  # NaN where one of them is

    @staticmethod
    def _outcome(network: Call, x: Tensor, t: Tensor) -> list[Tensor]:
        if not torch.is_grad_enabled():
            return [network(x, t).clone().float()]
        probe = x.detach().clone().requires_grad_()
        out = network(probe, t.clone()).float()
        (gradient,) = torch.autograd.grad(out.square().sum(), probe)
        return [out.detach().clone(), gradient]

    def _state(self) -> list[tuple]:
        """What the network is made of; other contents, other code."""
        return [
            (id(m), "forward" in vars(m), len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in self.network.modules()
        ]
