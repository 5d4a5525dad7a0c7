"""nodes/latent_denoiser.py as far as it goes without ComfyUI; tests/comfyui/ has the rest, over its own classes."""

from __future__ import annotations

import sys
import types
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from antipure.methods.diffusion.autoencoder import tile_side
from antipure.methods.diffusion.batching import PlannedBatching
from antipure.methods.diffusion.denoiser import add_noise
from antipure.methods.diffusion.schedules import flow, thousand_levels, variance_exploding
from antipure.methods.errors import AntiPureError
from antipure.methods.gradients.memory_plan import CheckpointPolicy, LinearInArea, SavedBytes
from antipure.nodes.latent_denoiser import ModelDenoiser, check_fit, native_side, read_schedule


@pytest.fixture
def kinds(monkeypatch):
    """ComfyUI's kinds of sampling, by name only."""
    module = types.ModuleType("comfy.model_sampling")
    module.EPS = type("EPS", (), {})
    module.V_PREDICTION = type("V_PREDICTION", (module.EPS,), {})
    module.CONST = type("CONST", (), {})
    module.COSMOS_RFLOW = type("COSMOS_RFLOW", (), {})
    module.IMG_TO_IMG = type("IMG_TO_IMG", (module.EPS,), {})
    comfy = types.ModuleType("comfy")
    comfy.model_sampling = module
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.model_sampling", module)
    return module


def sampling(kind: type, sigmas: torch.Tensor, **attributes):
    return type("ModelSampling", (kind,), {"sigmas": sigmas, **attributes})()


def test_thousand_levels_of_tables_of_any_length():
    for length in (1000, 10000):
        sigmas = torch.arange(1, length + 1) / length
        assert torch.allclose(thousand_levels(sigmas), torch.arange(1, 1001) / 1000)
    assert len(thousand_levels(torch.arange(1, 31) / 30)) == 1000


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "COSMOS_RFLOW"])
def test_exploding_noise_is_the_scaled_ddpm_step(kinds, kind):
    schedule = read_schedule(sampling(getattr(kinds, kind), torch.linspace(0.03, 14.6, 1000)))
    x0, noise = torch.randn(2, 1000, 1, 1, 1)
    x = schedule.scale.view(-1, 1, 1, 1) * add_noise(x0, noise, schedule.alphas_cumprod)
    assert torch.allclose(x, x0 + schedule.sigmas.view(-1, 1, 1, 1) * noise, atol=1e-4)


@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
def test_flow_noise_is_the_scaled_ddpm_step(kinds, noise_scale):
    shift = 3.0
    times = torch.arange(1, 1001) / 1000
    levels = shift * times / (1 + (shift - 1) * times)
    schedule = read_schedule(sampling(kinds.CONST, levels, noise_scale=noise_scale))
    x0, noise = torch.randn(2, 1000, 1, 1, 1)
    x = schedule.scale.view(-1, 1, 1, 1) * add_noise(x0, noise, schedule.alphas_cumprod)
    s = levels.view(-1, 1, 1, 1)
    assert torch.allclose(x[9:], ((1 - s) * x0 + s * noise_scale * noise)[9:], atol=1e-3)
    assert schedule.alphas_cumprod.min() > 0


def test_other_samplings_are_refused(kinds):
    with pytest.raises(AntiPureError, match="not noise to image"):
        read_schedule(sampling(kinds.IMG_TO_IMG, torch.ones(1000)))


def test_tables_are_ordinary_tensors_ascending_in_noise():
    sigmas = torch.linspace(0.01, 10, 1000)
    for schedule in (variance_exploding(sigmas), flow(sigmas / 10.1)):
        assert (schedule.alphas_cumprod.diff() < 0).all()
        assert schedule.alphas_cumprod.dtype == schedule.scale.dtype == torch.float32


def parts(**changes):
    """Stand-ins with what check_fit looks at."""
    values = {"channels": 4, "vae_channels": 4, "dimensions": 2, "context": 768, "keys": (), "extra": None, **changes}
    latent = types.SimpleNamespace(latent_channels=values["channels"], latent_dimensions=values["dimensions"])
    base = types.SimpleNamespace(
        latent_format=latent,
        concat_keys=values["keys"],
        model_config=types.SimpleNamespace(unet_config={"context_dim": values["context"]}),
    )
    vae = types.SimpleNamespace(
        first_stage_model=object(),
        latent_dim=2,
        latent_channels=values["vae_channels"],
        extra_1d_channel=values["extra"],
        spacial_compression_encode=lambda: 8,
    )
    return types.SimpleNamespace(model=base), vae, [[torch.zeros(1, 77, 768), {}]]


def test_matching_parts_pass():
    check_fit(*parts())
    check_fit(*parts(context=None))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dimensions": 3}, "not an image"),
        ({"vae_channels": 16}, "16 latent channels and the MODEL 4"),
        ({"extra": 16}, "not one for single images"),
        ({"keys": ("mask",)}, "more than the noisy latent"),
        ({"context": 2048}, "768 wide and the MODEL expects 2048"),
    ],
)
def test_wrong_pairings_are_refused(changes, sentence):
    with pytest.raises(AntiPureError, match=sentence):
        check_fit(*parts(**changes))


@pytest.mark.parametrize("key", ["control", "area", "mask", "hooks", "start_percent"])
def test_conditioning_beyond_text_is_refused(key):
    model, vae, ((text, _),) = parts()
    with pytest.raises(AntiPureError, match="plain text only"):
        check_fit(model, vae, [[text, {key: object()}]])


def test_out_of_memory_first_computes_more_twice_then_halves_then_gives_up():
    line = LinearInArea(100.0, 0.0)
    cost = SavedBytes(held=line, inputs=LinearInArea(10.0, 0.0), block=LinearInArea(10.0, 0.0))
    batching = PlannedBatching(lambda: {"encode": cost, "predict": cost, "decode": cost}, 1e9)
    sizes, needs = [], []
    while True:
        sizes.append(max(part.stop - part.start for part in batching.batches(4, 8, 8, 3)))
        needs.append(batching.plan.fixed + sizes[-1] * batching.plan.each)
        if not batching.shrink():
            break
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert all(after <= before / 2 for before, after in pairwise(needs[:-1]))
    assert all(policy is CheckpointPolicy.STORE for policy in sized_plan(1e9, cost).values())
    assert all(policy.in_blocks and not policy.keep for policy in list(batching.plan.policies.values())[:2])
    assert not batching.plan.leaner


def sized_plan(memory: float, cost: SavedBytes) -> dict[str, CheckpointPolicy]:
    batching = PlannedBatching(lambda: {"encode": cost, "predict": cost, "decode": cost}, memory)
    batching.size(8, 8, 3)
    return batching.plan.policies


def test_pictures_are_one_tile_up_to_512():
    assert [tile_side(8, *s, tile=512) for s in ((1, 1), (35, 33), (512, 100), (513, 100))] == [8, 40, 512, 512]


def test_denoisers_without_borrowed_weights_prepare_nothing(tiny):
    assert isinstance(tiny.prepared(), nullcontext)


@pytest.mark.parametrize(
    ("name", "side"), [("SD15", 512), ("SDXL", 1024), ("SD3", 1024), ("Flux", 1024), ("New", 1024)]
)
def test_tiles_have_the_native_size_where_a_gradient_through_one_fits(name, side):
    denoiser = ModelDenoiser.__new__(ModelDenoiser)
    denoiser.native, denoiser.multiple, denoiser._tile = native_side(type(name, (), {})()), 8, 512
    line = LinearInArea(1000.0, 0.0)
    cost = SavedBytes(held=line, inputs=LinearInArea(10.0, 0.0), block=LinearInArea(100.0, 0.0))
    costs = {"encode": cost, "predict": cost, "decode": cost}
    # The leanest that is held of one tile: a segment's inputs and its hungriest block.
    least = side**2 * (10 + 100)
    for memory, fits in ((least * 1.01, True), (least * 0.99, side == 512)):
        denoiser._batching = PlannedBatching(lambda: costs, memory)
        assert denoiser._native_fits() == fits
    denoiser._tile = side
    assert denoiser.tile_for(2000, 300) == side
    assert denoiser.tile_for(300, 200) == 304
