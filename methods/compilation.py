"""torch.compile for a network, as an option with a way back."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

OFF, COMPILED, CUDA_GRAPHS = "off", "torch.compile", "CUDA graphs"
MODES = (OFF, COMPILED, CUDA_GRAPHS)


class CompiledNetwork:
    """Calls a network through torch.compile, or as it is where that cannot be done.

    network: called as network(x, t).sample. mode: `COMPILED`, or `CUDA_GRAPHS`, where torch.compile also records what
    it launches on a GPU and replays it (its "reduce-overhead"), each batch size anew; on other devices it does not.
    options: of torch.compile.
    Compiling takes place at the first call and takes a minute or so; where it fails (no C++ compiler, an operation it
    cannot express), that is said once and the network runs as it is from then on. A network that was changed since, by
    LoRA layers or hooks, runs as it is while it is changed: compiled code would not see them. Results differ from the
    plain network's by rounding.
    """

    def __init__(self, network: nn.Module, mode: str = COMPILED, **options):
        self.network = network
        self.mode = mode
        if mode == CUDA_GRAPHS:
            options["mode"] = "reduce-overhead"
        self._compiled = torch.compile(self._plain, **options)
        self._tried = False
        self._modules = self._state()

    @property
    def active(self) -> bool:
        """Whether the compiler has not failed so far."""
        return self._compiled is not None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """network(x, t).sample"""
        if self._compiled is None or self._state() != self._modules:
            return self._plain(x, t)
        try:
            if not self._tried:
                self._try_backward(x, t)
            out = self._compiled(x, t)
            # A replay writes where the last one wrote: what is handed out must not be overwritten by the next.
            return out.clone() if self.mode == CUDA_GRAPHS else out
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise nearly anything
            self._compiled = None
            log.warning("The network could not be compiled (%s); it runs as it is from now on.", type(error).__name__)
        return self._plain(x, t)

    def _plain(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t).sample

    def _try_backward(self, x: Tensor, t: Tensor) -> None:
        # A backward pass is compiled when it first runs, which would be outside of this class.
        with torch.inference_mode(False), torch.enable_grad():
            probe = x.detach().clone().requires_grad_()
            self._compiled(probe, t.clone()).sum().backward()
        self._tried = True

    def _state(self) -> list[tuple]:
        """What the network is made of; other contents, other code."""
        return [
            (id(m), "forward" in vars(m), len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in self.network.modules()
        ]
