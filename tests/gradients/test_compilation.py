"""The compiled network: the same results, and a way back from everything."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.gradients import compilation
from antipure.methods.gradients.compilation import COMPILED, CUDA_GRAPHS, CompiledNetwork
from antipure.methods.lora_patching.patch import PatchConfig, new_patch

X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
T = torch.tensor([3, 50, 900])


class Spy:
    """Stands for torch.compile: counts what runs through it."""

    def __init__(self):
        self.calls, self.error, self.options = 0, None, None

    def compile(self, function, **options):
        self.options = options

        def run(*args):
            self.calls += 1
            if self.error is not None:
                raise self.error
            return function(*args)

        return run


@pytest.fixture
def spy(monkeypatch):
    found = Spy()
    monkeypatch.setattr(compilation.torch, "compile", found.compile)
    return found


@pytest.fixture
def network(make_tiny):
    return make_tiny(seed=3).unet


def test_traced_through_the_compiler_it_is_the_same_network(network):
    compiled = CompiledNetwork(network, backend="aot_eager")  # traced and taken apart, without a C++ compiler
    for x in (X, X[:1]):
        mine, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = compiled(mine, T[: len(x)]), network(plain, T[: len(x)]).sample
        torch.testing.assert_close(out, expected)
        gradients = [torch.autograd.grad(o.square().sum(), i)[0] for o, i in ((out, mine), (expected, plain))]
        torch.testing.assert_close(*gradients)
    assert compiled.active, "it did not fall back"


@pytest.mark.parametrize("grad", [True, False])
def test_it_is_compared_with_the_network_once_for_each_shape(spy, network, grad):
    compiled = CompiledNetwork(network)
    with torch.set_grad_enabled(grad):
        for x, t, calls in ((X, T, 2), (X, T, 3), (X[:2], T[:2], 5), (X[:2], T[:2], 6)):
            assert torch.equal(compiled(x, t), network(x, t).sample)
            assert spy.calls == calls
    with torch.set_grad_enabled(not grad):
        compiled(X, T)
    assert spy.calls == 8, "with a gradient it is other code than without"


class Wrong(Spy):
    """A compiler whose code has the right result and a gradient that is off by `off`, or the reverse."""

    def __init__(self, off: float, forward: bool):
        super().__init__()
        self.off, self.forward = off, forward

    def compile(self, function, **options):
        right = super().compile(function, **options)
        factor = 1 + self.off

        def run(x, t):
            out = right(x, t)
            scaled = factor * out
            return scaled + (out - scaled).detach() if not self.forward else out + (scaled - out).detach()

        return run


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize(("off", "noticed"), [(0.1, True), (0.02, True), (1e-4, False)])
def test_a_compiler_that_is_wrong_is_noticed(monkeypatch, network, caplog, off, noticed, forward):
    monkeypatch.setattr(compilation.torch, "compile", Wrong(off, forward).compile)
    compiled = CompiledNetwork(network)
    x = X.clone().requires_grad_()
    with caplog.at_level(logging.WARNING):
        out = compiled(x, T)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        compiled(x, T)
    plain = X.clone().requires_grad_()
    expected = network(plain, T).sample
    (exact,) = torch.autograd.grad(expected.square().sum(), plain)
    assert compiled.active == (not noticed)
    said = [f"Compiled, the network gives other results ({off:g} apart); it runs as it is from now on."]
    assert [record.message for record in caplog.records] == said * noticed
    torch.testing.assert_close(out, expected, rtol=0 if noticed else 1e-3, atol=1e-6 if noticed else 1e-3)
    torch.testing.assert_close(gradient, exact, rtol=0 if noticed else 1e-3, atol=1e-6 if noticed else 1e-3)


@pytest.mark.parametrize("grad", [True, False])
def test_where_it_cannot_be_compiled_it_runs_as_it_is(spy, network, caplog, grad):
    compiled = CompiledNetwork(network)
    spy.error = RuntimeError("no compiler here")
    with caplog.at_level(logging.WARNING), torch.set_grad_enabled(grad):
        expected = network(X, T).sample
        assert torch.equal(compiled(X, T), expected)
        assert torch.equal(compiled(X, T), expected)
    assert spy.calls == 1
    assert not compiled.active
    assert [record.message for record in caplog.records] == [
        "The network could not be compiled (RuntimeError); it runs as it is from now on."
    ]


def test_running_out_of_memory_is_no_failure_to_compile(spy, network, no_room):
    compiled = CompiledNetwork(network)
    with pytest.raises((RuntimeError, MemoryError)) as full:
        no_room()
    spy.error = full.value
    with pytest.raises(type(spy.error)):
        compiled(X, T)
    spy.error = None
    compiled(X, T)
    assert spy.calls == 3


def test_a_changed_network_runs_as_it_is_until_it_is_changed_back(spy, network):
    network = copy.deepcopy(network)
    compiled = CompiledNetwork(network)
    before = compiled(X, T)
    calls = spy.calls
    patch = new_patch(network, PatchConfig(rank=2, gate="none"))
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.fill_(0.1)
    assert not torch.equal(compiled(X, T), before)
    patch.remove()
    assert spy.calls == calls
    handle = network.conv_in.register_forward_hook(lambda module, args, out: out * 2)
    assert not torch.equal(compiled(X, T), before)
    handle.remove()
    assert spy.calls == calls
    assert torch.equal(compiled(X, T), before)
    assert spy.calls == calls + 1


def test_denoisers_take_it_as_an_option(spy, network, make_tiny):
    plain = make_tiny(seed=3)
    denoiser = PixelDenoiser(network, plain.alphas_cumprod, tile=16, compile=COMPILED)
    assert denoiser.bytes_per_pixel() == plain.bytes_per_pixel()
    assert spy.calls == 0, "counting bytes compiles nothing"
    assert torch.equal(denoiser.predict_noise(X, T), plain.predict_noise(X, T))
    assert spy.calls == 2
    assert load_denoiser(compile=COMPILED).compiled
    assert not load_denoiser().compiled


class Replays(Spy):
    """Like CUDA graphs: every call writes its result where the last one wrote."""

    place = None

    def compile(self, function, **options):
        plain = super().compile(function, **options)

        def run(*args):
            out = plain(*args)
            if out.requires_grad:
                return out
            self.place = out if self.place is None else self.place.copy_(out)
            return self.place

        return run


def test_cuda_graphs_are_asked_for_and_hand_out_what_stays(monkeypatch, network):
    found = Replays()
    monkeypatch.setattr(compilation.torch, "compile", found.compile)
    compiled = CompiledNetwork(network, CUDA_GRAPHS)
    assert found.options == {"mode": "reduce-overhead"}
    with torch.no_grad():
        first, second = compiled(X, T), compiled(-X, T)
        assert torch.equal(first, network(X, T).sample)
        assert torch.equal(second, network(-X, T).sample)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x, T).square().sum(), x)
    (expected,) = torch.autograd.grad(network(x, T).sample.square().sum(), x)
    assert torch.equal(gradient, expected)
    CompiledNetwork(network)
    assert found.options == {}


def test_an_unknown_way_to_compile_is_refused():
    with pytest.raises(AntiPureError, match="'fast' is unknown; choose one of off, torch.compile, CUDA graphs"):
        load_denoiser(compile="fast")


@pytest.mark.parametrize(("allocator", "mode"), [("cudaMallocAsync", COMPILED), ("native", CUDA_GRAPHS)])
def test_cuda_graphs_are_left_out_over_an_allocator_that_they_never_end_with(monkeypatch, caplog, allocator, mode):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: allocator, raising=False)
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.update(options) or function)
    network = CompiledNetwork(torch.nn.Linear(2, 2), CUDA_GRAPHS)
    assert network.mode == mode
    assert asked == ({} if mode == COMPILED else {"mode": "reduce-overhead"})
    assert ["--disable-cuda-malloc" in record.getMessage() for record in caplog.records] == [True] * (mode == COMPILED)
