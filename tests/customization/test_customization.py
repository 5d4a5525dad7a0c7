"""Customization: only the LoRA trains, networks come back bit for bit, and every judge against its formula."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.customization.dreambooth_lora import CustomizationSettings, adapted_layers, customize, customized
from antipure.methods.customization.gap import (
    judge_samples,
    make_probe,
    make_probes,
    probe_loss,
    probe_losses,
    spectral_distance,
)
from antipure.methods.customization.pipeline import PIPELINE_SETTINGS, load_pipeline
from antipure.methods.diffusion.ddim import generate
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.distribution import DenoiserFeatures
from antipure.methods.metrics.sliced_wasserstein import (
    patch_distance,
    picture_patches,
    sliced_wasserstein,
    wasserstein_1d,
)
from antipure.methods.pictures import random_stream
from scipy.stats import wasserstein_distance
from torch import nn

QUICK = CustomizationSettings(rank=2, steps=3, batch=2)


def pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def denoiser() -> PixelDenoiser:
    """Tiny, with attention, and trainable flags and modes that differ from what peft leaves behind."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return PixelDenoiser(unet, abar, tile=16)


def fingerprint(network: nn.Module) -> tuple:
    """Modules by identity, weights bit for bit, flags, modes and the network's own attributes."""
    return (
        [(name, id(module), module.training) for name, module in network.named_modules()],
        [(name, id(p), p.requires_grad, p.grad is None, p.detach().clone()) for name, p in network.named_parameters()],
        {name: id(value) for name, value in vars(network).items()},
        torch.get_rng_state(),
    )


def same(first: tuple, second: tuple) -> bool:
    modules, weights, attributes, state = zip(first, second, strict=True)
    return (
        modules[0] == modules[1]
        and attributes[0] == attributes[1]
        and torch.equal(*state)
        and len(weights[0]) == len(weights[1])
        and all(a[:4] == b[:4] and torch.equal(a[4], b[4]) for a, b in zip(*weights, strict=True))
    )


def predicted(denoiser) -> torch.Tensor:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return denoiser.predict_noise(x, torch.tensor([10, 90]))


def test_only_the_lora_trains_and_all_of_it_gets_gradients(denoiser):
    before = {name: p.detach().clone() for name, p in denoiser.network.named_parameters()}
    untouched, seen = predicted(denoiser), []

    def look(done, total, picture, loss):
        flags = {name for name, p in denoiser.network.named_parameters() if p.requires_grad}
        assert all(".lora_" in name for name in flags)
        seen.append((done, total, loss, len(flags)))

    with customized(denoiser, pictures(2, 20), QUICK, progress=look) as c:
        names = adapted_names(denoiser.network)
        assert {n for n in names if n.endswith("to_q")}, "attention is adapted"
        assert {"conv_in", "conv_out", "mid_block.resnets.0.conv1"} <= names
        assert not any("time" in name or "norm" in name for name in names)
        now = {name.replace(".base_layer", ""): p for name, p in denoiser.network.named_parameters()}
        assert all(torch.equal(now[name], value) for name, value in before.items())
        second = [p for name, p in denoiser.network.named_parameters() if ".lora_B." in name]
        assert len(second) == len(names)
        assert all(p.abs().max() > 0 for p in second), "every B has left 0"
        assert not any(p.requires_grad for p in denoiser.network.parameters())
        assert not torch.equal(predicted(denoiser), untouched)
    assert [(done, total) for done, total, *_ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [loss for *_, loss, _ in seen] == c.losses
    assert {count for *_, count in seen} == {2 * len(names)}
    assert torch.equal(predicted(denoiser), untouched)


def adapted_names(network: nn.Module) -> set[str]:
    return set(adapted_layers_of(network))


def test_what_is_learned_is_a_lora_of_scale_1(denoiser):
    """The same factors in peft's own layers, with alpha = rank."""
    from peft import LoraConfig, inject_adapter_in_model

    with customized(denoiser, pictures(2, 20), replace(QUICK, learning_rate=0.05)) as c:
        found = predicted(denoiser)
        names = adapted_layers_of(denoiser.network)
        factors = [p.detach().clone() for p in c.parameters]
    untouched = predicted(denoiser)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=names)
    network = inject_adapter_in_model(config, denoiser.network)
    slots = [p for name in names for p in network.get_submodule(name).parameters() if p.requires_grad]
    with torch.no_grad():
        for slot, factor in zip(slots, factors, strict=True):
            slot.copy_(factor)
    assert torch.allclose(predicted(denoiser), found, atol=1e-5)
    assert (found - untouched).abs().max() > 1e-2


def adapted_layers_of(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if hasattr(module, "lora_B")]


def test_customizing_lowers_the_loss_on_what_it_saw(denoiser):
    picture = pictures(1, 16).round()
    probe = make_probe(denoiser, picture, count=16)
    before = probe_loss(denoiser, probe)
    with customized(denoiser, picture, CustomizationSettings(rank=4, steps=40, learning_rate=5e-3)) as c:
        after = probe_loss(denoiser, probe)
    assert after < 0.95 * before
    assert sum(c.losses[-8:]) < sum(c.losses[:8])


@pytest.mark.parametrize("way", ["success", "error", "cancel", "bad adapters", "inference mode"])
def test_network_comes_back_bit_for_bit(denoiser, way, monkeypatch):
    denoiser.network.train()
    denoiser.network.conv_in.weight.requires_grad_(True)
    before = fingerprint(denoiser.network)
    if way == "success":
        customization = customize(denoiser, pictures(1, 16), QUICK)
        assert not same(fingerprint(denoiser.network), before)
        customization.remove()
        customization.remove()
    elif way == "error":
        with pytest.raises(RuntimeError, match="inside"), customized(denoiser, pictures(1, 16), QUICK):
            raise RuntimeError("inside")
    elif way == "cancel":

        def cancel(done, *_):
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            customize(denoiser, pictures(1, 16), QUICK, progress=cancel)
    elif way == "bad adapters":
        from antipure.methods.lora_patching import layer

        def half_way(config, network, adapter):
            network.conv_in = nn.Identity()
            network.peft_config = {}
            raise ValueError("peft failed")

        monkeypatch.setattr(layer, "inject_adapter_in_model", half_way)
        with pytest.raises(ValueError, match="peft failed"):
            customize(denoiser, pictures(1, 16), QUICK)
    else:
        with torch.inference_mode(), customized(denoiser, pictures(1, 16), QUICK) as c:
            assert len(c.losses) == 3
    assert same(fingerprint(denoiser.network), before)


def test_same_seed_same_bits_and_another_seed_others(denoiser):
    def trained(seed: int) -> tuple[list[float], torch.Tensor, torch.Tensor]:
        torch.manual_seed(torch.seed())  # the global stream plays no part
        with customized(denoiser, pictures(2, 24), QUICK, seed) as c:
            return c.losses, torch.cat([p.flatten() for p in c.parameters]), generate(denoiser, 2, steps=3, seed=seed)

    first, again, other = trained(1), trained(1), trained(2)
    assert first[0] == again[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1:], again[1:], strict=True))
    assert first[0] != other[0]
    assert not any(torch.equal(a, b) for a, b in zip(first[1:], other[1:], strict=True))


def test_batches_bounded_by_memory_sum_to_the_same_gradient(denoiser):
    with customized(denoiser, pictures(1, 24), QUICK) as c:
        whole = c.losses
    denoiser.batching.limit = 1
    with customized(denoiser, pictures(1, 24), QUICK) as c:
        assert c.losses == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"learning_rate": float("nan")}, "learning rate"),
        ({"low": 2000}, "low is 2000"),
        ({"low_share": 1.5}, "low_share"),
    ],
)
def test_bad_settings_are_refused_before_work_starts(denoiser, settings, message):
    before = fingerprint(denoiser.network)
    with pytest.raises(AntiPureError, match=message):
        customize(denoiser, pictures(1, 16), CustomizationSettings(**settings))
    assert same(fingerprint(denoiser.network), before)


def test_refusals_of_pictures_and_networks(denoiser):
    with pytest.raises(AntiPureError, match="shape"):
        customize(denoiser, torch.rand(3, 16, 16), QUICK)
    with customized(denoiser, pictures(1, 16), QUICK), pytest.raises(AntiPureError, match="adapters already"):
        customize(denoiser, pictures(1, 16), QUICK)
    with pytest.raises(AntiPureError, match="no attention layer"):
        adapted_layers(nn.Sequential(nn.Conv2d(3, 3, 1)), convolutions=False)
    before = fingerprint(denoiser.network)
    denoiser.alphas_cumprod = denoiser.alphas_cumprod * float("nan")
    with pytest.raises(AntiPureError, match="not finite"):
        customize(denoiser, pictures(1, 16), QUICK)
    assert same(fingerprint(denoiser.network), before)


def test_probe_loss_is_the_mean_square_error_of_the_noise(denoiser):
    """Recomputed sample by sample from the probe's crops, in numpy."""
    clean = pictures(2, 20)
    probe = make_probe(denoiser, clean, count=6, low=20, high=100, seed=3)
    assert probe.t.tolist() == [20, 33, 46, 60, 73, 86]
    windows = clean.unfold(2, 16, 1).unfold(3, 16, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * 16 * 16)
    differences = (probe.pictures.flatten(1)[:, None] - windows).abs().amax(2)
    assert differences.amin(1).max() < 1e-6, "crops are the clean picture's own"
    expected = []
    for i, (crop, t) in enumerate(zip(probe.crops.numpy(), probe.t.tolist(), strict=True)):
        eps = torch.randn(3, 16, 16, generator=random_stream(3, 3, i)).numpy()
        abar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: t + 1])
        x_t = torch.from_numpy(np.sqrt(abar) * crop + np.sqrt(1 - abar) * eps).float()[None]
        with torch.no_grad():
            found = denoiser.network(x_t, torch.tensor([t])).sample[0].numpy()
        expected.append(np.mean((found - eps) ** 2))
    assert probe_loss(denoiser, probe) == pytest.approx(np.mean(expected), rel=1e-5)
    denoiser.batching.limit = 1
    assert probe_loss(denoiser, probe) == pytest.approx(np.mean(expected), rel=1e-5)


def test_coarse_structure_has_a_probe_of_its_own(denoiser):
    """The same crops and noise at timesteps 100-400; the first probe is the one there always was."""
    clean = pictures(1, 24)
    probes = make_probes(denoiser, clean, count=6)
    assert [(name, int(p.t.min()), int(p.t.max())) for name, p in probes.items()] == [
        ("loss_20_100", 20, 86),
        ("loss_100_400", 100, 350),
    ]
    assert torch.equal(probes["loss_20_100"].crops, probes["loss_100_400"].crops)
    found = probe_losses(denoiser, probes)
    assert found["loss_20_100"] == probe_loss(denoiser, make_probe(denoiser, clean, count=6))
    assert found["loss_100_400"] == probe_loss(denoiser, make_probe(denoiser, clean, count=6, low=100, high=400))
    assert found["loss_20_100"] != found["loss_100_400"]


def test_probe_ranges_are_checked(denoiser):
    for wrong in ({"low": 100, "high": 100}, {"high": 1001}, {"count": 0}, {"low": -1}):
        with pytest.raises(AntiPureError, match="crops at timesteps"):
            make_probe(denoiser, pictures(1, 16), **wrong)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (5, 12), (30, 4), (9, 6)])
def test_wasserstein_is_scipys(n, m):
    generator = torch.Generator().manual_seed(n)
    a, b = torch.randn(n, 3, generator=generator), torch.randn(m, 3, generator=generator) * 2 + 1
    expected = [wasserstein_distance(a[:, i].double(), b[:, i].double()) for i in range(3)]
    assert wasserstein_1d(a, b).tolist() == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_over_its_directions_is_scipys():
    a, b = torch.randn(11, 5, generator=random_stream(0)), torch.rand(8, 5, generator=random_stream(1))
    axes = torch.randn(5, 40, generator=random_stream(9), dtype=torch.float64).numpy()
    axes /= np.linalg.norm(axes, axis=0)
    expected = np.mean([wasserstein_distance(a.double().numpy() @ v, b.double().numpy() @ v) for v in axes.T])
    assert sliced_wasserstein(a, b, directions=40, seed=9) == pytest.approx(expected, rel=1e-10)
    assert sliced_wasserstein(a, a[torch.randperm(11)], seed=9) == pytest.approx(0, abs=1e-12)
    shifted = sliced_wasserstein(a, a + torch.tensor([3.0, 4, 0, 0, 0]), directions=4000)
    # A shift by v costs |v · direction| along each; its mean over the sphere in 5 dimensions is 3/8 |v|.
    assert shifted == pytest.approx(5 * 3 / 8, rel=0.05)


def test_patches_are_the_pictures_own():
    x = pictures(2, 16)
    expected = [x[i, :, y : y + 8, z : z + 8].flatten() for i in range(2) for y in (0, 8) for z in (0, 8)]
    assert torch.equal(picture_patches(x), torch.stack(expected))
    assert patch_distance(torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75)) == pytest.approx(
        0.4, rel=0.2
    )
    for wrong in (lambda: picture_patches(x, 17), lambda: sliced_wasserstein(x[0, 0], x[0, 0, :, :3])):
        with pytest.raises(AntiPureError):
            wrong()
    with pytest.raises(AntiPureError, match="directions"):
        sliced_wasserstein(x[0, 0], x[0, 0], directions=0)
    with pytest.raises(AntiPureError, match="at least one row"):
        wasserstein_1d(x[0, 0], x[0, 0, :0])


def test_judges_tell_the_subject_from_another(denoiser):
    encoder = DenoiserFeatures(denoiser, "tiny")
    subject, alike, other = (pictures(12, 16, seed) * scale for seed, scale in ((0, 1), (1, 1), (2, 0.4)))
    near, far = judge_samples(alike, subject, encoder), judge_samples(other, subject, encoder)
    assert all(near[key] < far[key] for key in ("swd", "kid", "spectrum"))
    # 0.4 times the amplitude is 8 dB less power at every frequency.
    assert spectral_distance(0.4 * subject, subject) == pytest.approx(-20 * np.log10(0.4), rel=1e-6)
    with pytest.raises(AntiPureError, match="one size"):
        spectral_distance(subject, pictures(2, 8))


def test_generate_is_ddim(denoiser):
    """One picture of a batch against DDIM written out in float64 around the same network."""
    found = generate(denoiser, 3, 16, seed=4, steps=5)
    assert found.shape == (3, 3, 16, 16)
    assert torch.equal(found, generate(denoiser, 3, 16, seed=4, steps=5))
    assert torch.allclose(found[:2], generate(denoiser, 2, 16, seed=4, steps=5), atol=1e-5)
    assert not torch.equal(found, generate(denoiser, 3, 16, seed=5, steps=5))
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x = torch.randn(3, 16, 16, generator=random_stream(4, 1)).double().numpy()
    expected = ddim_by_hand(denoiser, x, abar, [999, 749, 500, 250, 0])
    assert torch.allclose(found[1].double(), expected, atol=1e-4)


@pytest.mark.parametrize(("timestep", "times"), [(200, [199, 100, 0]), (7, [6]), (4, [3, 2, 1, 0])])
def test_generate_from_a_start_is_ddim_over_any_timesteps(denoiser, timestep, times):
    start = pictures(1, 16)
    found = generate(denoiser, 1, 16, seed=4, steps=len(times), start=start, timestep=timestep)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    eps = torch.randn(3, 16, 16, generator=random_stream(4, 0)).double().numpy()
    x = np.sqrt(abar[times[0]]) * (start[0].double().numpy() * 2 - 1) + np.sqrt(1 - abar[times[0]]) * eps
    assert torch.allclose(found[0].double(), ddim_by_hand(denoiser, x, abar, times), atol=1e-5)


def ddim_by_hand(denoiser: PixelDenoiser, x: np.ndarray, abar: np.ndarray, times: list[int]) -> torch.Tensor:
    """Song et al., ICLR 2021, eq. 12 with sigma = 0 and x0 clamped; x: 3×H×W, the result in 0..1."""
    for i, t in enumerate(times):
        with torch.no_grad():
            eps = denoiser.network(torch.from_numpy(x).float()[None], torch.tensor([t])).sample[0].double().numpy()
        x0 = np.clip((x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t]), -1, 1)
        eps = (x - np.sqrt(abar[t]) * x0) / np.sqrt(1 - abar[t])
        following = abar[times[i + 1]] if i + 1 < len(times) else 1.0
        x = np.sqrt(following) * x0 + np.sqrt(1 - following) * eps
    return torch.from_numpy(x / 2 + 0.5).clamp(0, 1)


def test_generate_from_a_start_stays_near_it(denoiser):
    start = pictures(1, 16)
    near, far = (generate(denoiser, 2, 16, start=start, timestep=t, steps=1) for t in (1, 900))
    assert (near - start).abs().mean() < 0.02 < (far - start).abs().mean()
    assert not torch.equal(near[0], near[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "at least 1 picture"),
        ({"steps": 0}, "in 0 steps"),
        ({"timestep": 2, "steps": 3}, "1..2 steps"),
        ({"timestep": 1001}, "1..1000"),
        ({"size": 15}, "multiple of 2"),
        ({"start": torch.rand(1, 3, 8, 8)}, "give it 16×16"),
    ],
)
def test_generate_refuses(denoiser, arguments, message):
    with pytest.raises(AntiPureError, match=message):
        generate(denoiser, **{"count": 1, "size": 16, **arguments})


# A tiny Stable Diffusion folder -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    root = tmp_path_factory.mktemp("sd")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abdefhknopstu")]
    (root / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(root / "vocab.json"), str(root / "merges.txt"), model_max_length=16)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(root / "pipeline", safe_serialization=True)
    return root / "pipeline"


def test_pipeline_end_to_end(folder):
    denoiser = load_pipeline(folder, "a photo of sks")
    assert (denoiser.tile, denoiser.multiple) == (16, 4)
    subject = pictures(2, 24)
    probe = make_probe(denoiser, subject, count=4, low=0, high=1000, resize=True)
    assert probe.crops.shape == (4, 3, 16, 16)
    loss, base = probe_loss(denoiser, probe), denoiser.generate(2, seed=1, steps=2)
    before = fingerprint(denoiser.network)
    settings = replace(PIPELINE_SETTINGS, steps=8, learning_rate=2e-2, rank=2)
    with customized(denoiser, subject, settings, seed=1) as c:
        names = adapted_names(denoiser.network)
        assert names
        assert all(".attn" in name for name in names)
        assert {name.rsplit(".", 1)[-1] for name in names} == {"to_q", "to_k", "to_v", "0"}
        assert probe_loss(denoiser, probe) != loss
        found = denoiser.generate(2, seed=1, steps=2)
        assert torch.equal(found, denoiser.generate(2, seed=1, steps=2))
        assert torch.equal(found[:1], denoiser.generate(1, seed=1, steps=2))
        assert not torch.equal(found, denoiser.generate(2, seed=2, steps=2))
        assert not torch.equal(found, base)
    assert found.shape == (2, 3, 16, 16)
    assert len(c.losses) == 8
    assert same(fingerprint(denoiser.network)[:3] + before[3:], before)
    assert torch.equal(denoiser.generate(2, seed=1, steps=2), base)


def test_pipeline_predicts_what_its_unet_says(folder):
    denoiser = load_pipeline(folder, "a photo of sks")
    z, t = torch.randn(2, 4, 8, 8, generator=random_stream(0)), torch.tensor([3, 700])
    p = denoiser.pipeline
    with torch.no_grad():
        embedding, _ = p.encode_prompt("a photo of sks", "cpu", 1, False)
        expected = p.unet(z, t, encoder_hidden_states=embedding.expand(2, -1, -1)).sample
        assert torch.allclose(denoiser.predict_noise(z, t), expected, atol=1e-6)
        # The same network read as v-predicting: eps = sqrt(abar) v + sqrt(1 - abar) x_t.
        denoiser.kind = "v_prediction"
        a = p.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        assert torch.allclose(denoiser.predict_noise(z, t), a.sqrt() * expected + (1 - a).sqrt() * z, atol=1e-6)
        x = pictures(1, 16) * 2 - 1
        latent = denoiser.encode(x)
        assert torch.allclose(latent, p.vae.encode(x).latent_dist.mean * p.vae.config.scaling_factor, atol=1e-6)
        assert torch.allclose(
            denoiser.decode(latent), p.vae.decode(latent / p.vae.config.scaling_factor).sample, atol=1e-5
        )


def test_pipelines_that_are_none_are_refused(folder, tmp_path):
    import shutil

    with pytest.raises(AntiPureError, match="model_index.json"):
        load_pipeline(tmp_path, "a")
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(AntiPureError, match="holds a DDPMPipeline"):
        load_pipeline(tmp_path, "a")
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = next((copy / "unet").glob("*.safetensors"))
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(AntiPureError, match="no safetensors"):
        load_pipeline(copy, "a")
    shutil.copy(folder / "unet" / weights.name, weights)
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    (copy / "scheduler" / "scheduler_config.json").write_text("nonsense")
    with pytest.raises(AntiPureError, match="cannot be read"):
        load_pipeline(copy, "a")
    with pytest.raises(AntiPureError, match="precision"):
        load_pipeline(folder, "a", precision="fp8")


def test_a_pipeline_in_halves_and_shards_is_the_same_pipeline(folder, tmp_path):
    import shutil

    from diffusers import StableDiffusionPipeline

    pipeline = load_pipeline(folder, "a photo of sks").pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shutil.copytree(tmp_path / "half", tmp_path / "mixed")
    name = "vae/diffusion_pytorch_model"
    (tmp_path / "mixed" / f"{name}.fp16.safetensors").rename(tmp_path / "mixed" / f"{name}.safetensors")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*"))) > 1
    assert isinstance(pipeline, StableDiffusionPipeline)
    x, t = torch.randn(1, 4, 8, 8, generator=random_stream(0)), torch.tensor([7])
    found = []
    for kind in ("whole", "half", "shards", "mixed"):
        denoiser = load_pipeline(tmp_path / kind, "a photo of sks")
        with torch.no_grad():
            found.append((denoiser.predict_noise(x, t), denoiser.encode(pictures(1, 16)), denoiser.embedding))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("part", "key", "change", "message"),
    [
        ("unet", "conv_in.weight", None, "the files of its UNet2DConditionModel lack 'conv_in.weight'"),
        ("vae", "encoder.conv_in.bias", None, "the files of its AutoencoderKL lack 'encoder.conv_in.bias'"),
        ("unet", "conv_out.bias", float("nan"), "'conv_out.bias' holds NaN or infinite weights"),
        ("text_encoder", None, float("inf"), "holds NaN or infinite weights"),
    ],
)
def test_pipelines_that_would_compute_something_else_are_refused(folder, tmp_path, part, key, change, message):
    import shutil

    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, tmp_path / "copy")
    path = next((copy / part).glob("*.safetensors"))
    state = load_file(path)
    key = key or next(iter(state))
    if change is None:
        del state[key]
    else:
        state[key].flatten()[0] = change
    save_file(state, path, {"format": "pt"})
    with pytest.raises(AntiPureError, match=message):
        load_pipeline(copy, "a")


def test_pipelines_with_the_noise_of_another_family_are_refused(folder, tmp_path):
    import shutil

    from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler

    for kind in (FlowMatchEulerDiscreteScheduler, LCMScheduler):
        copy = shutil.copytree(folder, tmp_path / kind.__name__)
        kind().save_pretrained(copy / "scheduler")
        index = json.loads((copy / "model_index.json").read_text())
        (copy / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind.__name__]}))
        with pytest.raises(AntiPureError, match=f"Its scheduler is a {kind.__name__}, whose noise is not that of DDPM"):
            load_pipeline(copy, "a")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"block_out_channels": [4096, 4096]}, "asks for [0-9]{9,} weights, far more than its files"),
        ("vae", {"block_out_channels": [4096, 4096]}, "asks for [0-9]{9,} weights, far more than its files"),
        ("text_encoder", {"hidden_size": 16384}, "asks for [0-9]{9,} weights, far more than its files"),
        ("unet", {"layers_per_block": 10**9}, "more than 1000 layers"),
        ("text_encoder", {"num_hidden_layers": 10**9}, "more than 1000 layers"),
    ],
)
def test_pipelines_take_no_memory_that_their_files_do_not_fill(folder, tmp_path, part, changes, message, monkeypatch):
    import shutil

    from diffusers import StableDiffusionPipeline

    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", None)  # nothing may come as far as this
    with pytest.raises(AntiPureError, match=message):
        load_pipeline(copy, "a")
