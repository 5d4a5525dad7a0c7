"""VAE Targets: what it makes, which terms a target gets, what says no to VAEs alone, and that all of it protects."""

from __future__ import annotations

import types
from dataclasses import fields, replace

import pytest
import torch
from antipure.methods.antipure.objective import PRESETS, Objective
from antipure.methods.attacks.ensemble import VaeTargets, bundled_vae_targets, combine, encoders_of, restricted
from antipure.methods.diffusion.autoencoder import NetworkAutoencoder
from antipure.methods.diffusion.taesd import TinyAutoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.pictures import round_8bit
from antipure.methods.protections import apply_protection, lacks_vae, used_terms
from antipure.nodes import NODE_CLASS_MAPPINGS, host
from antipure.nodes.targets import VaeTargetsNode
from torch import nn

LATENT = Objective(ddpm=0, pfg=0, etg=0, latent=1)
IMAGE = round_8bit(torch.rand(1, 40, 48, 3, generator=torch.Generator().manual_seed(0)))


def tiny_vae(seed: int = 0, channels: int = 4) -> NetworkAutoencoder:
    torch.manual_seed(seed)
    return NetworkAutoencoder(TinyAutoencoder(channels, 8), f"tiny{seed}")


@pytest.fixture(scope="module")
def vaes() -> list[NetworkAutoencoder]:
    return [tiny_vae(0), tiny_vae(1, 16)]


def build(*vaes) -> VaeTargets:
    (target,) = VaeTargetsNode().build(*vaes)
    return target


def protect(target, preset: str = "robust", **changes) -> tuple[torch.Tensor, list[str]]:
    settings = {"levels": 8.0, "steps": 4, "seed": 3, **changes}
    with torch.inference_mode():
        protected, _, report = NODE_CLASS_MAPPINGS["AntiPureProtect"]().protect(
            IMAGE.clone(), target, preset, **settings
        )
    return protected, report.splitlines()


def shift(protected: torch.Tensor, vae) -> float:
    return float(latent_shift(IMAGE.movedim(-1, 1), protected.movedim(-1, 1), vae).value)


def test_it_takes_one_to_four_and_each_of_them_once(vaes):
    first, second = vaes
    assert build(first).autoencoders == (first,)
    assert build(first, None, second, first).autoencoders == (first, second)
    types_of = VaeTargetsNode.INPUT_TYPES()
    assert list(types_of["required"]) == ["vae"]
    assert list(types_of["optional"]) == ["vae_2", "vae_3", "vae_4"]


def test_robust_on_vaes_alone_moves_them_beyond_random_signs_and_says_what_was_used(vaes):
    protected, report = protect(build(*vaes), steps=12)
    noise, _ = protect(None, "random")
    assert report[1:3] == ["no diffusion model wired:", "the latent term over 2 VAEs alone"]
    assert all(shift(protected, vae) > 1.2 * shift(noise, vae) for vae in vaes)
    assert torch.equal(protected, protect(build(*vaes), steps=12)[0]), "same seed, same bytes"
    assert all(p.grad is None for vae in vaes for p in vae.network.parameters())


def test_robust_on_a_denoiser_and_on_both(tiny, vaes):
    alone, report = protect(tiny)
    assert report[1:4] == ["no VAE wired: the pack's own encoder", "latent term over 1 VAE",
                           "unrolled term over 1 diffusion model"]  # fmt: skip
    (both,) = NODE_CLASS_MAPPINGS["AntiPureCombineDenoisers"]().build(build(*vaes), tiny, "mean")
    together, report = protect(both)
    assert report[1:3] == ["latent term over 2 VAEs", "unrolled term over 1 diffusion model"]
    assert max(map(len, report)) < 57
    assert not torch.equal(alone, together)
    _, report = protect(tiny, "strong")
    assert report[1].startswith("largest change"), "what has nothing to say reports as it always did"


def test_where_no_vae_is_wired_the_own_one_stands_in(tiny):
    own = combine(tiny, bundled_vae_targets(), "mean")
    for protection in ({"preset": "robust"}, {"objective": replace(LATENT, latent=3)}):
        assert torch.equal(protect(tiny, **protection)[0], protect(own, **protection)[0])
    _, report = protect(own)
    assert report[1] == "latent term over 1 VAE"
    assert not lacks_vae("robust", own)
    assert not any(lacks_vae(name, tiny) for name in ("strong", "paper", "pid", Objective()))


def test_an_objective_of_ones_own_reaches_the_latent_term(vaes, tiny):
    node, target = NODE_CLASS_MAPPINGS["AntiPureObjective"], combine(tiny, build(*vaes), "mean")
    types_of = node.INPUT_TYPES()
    given = {k: v[1]["default"] for k, v in {**types_of["required"], **types_of["optional"]}.items()}
    assert set(given) == {field.name for field in fields(Objective)} - {"step_share"}
    (objective,) = node().build(**given)
    assert objective == Objective()
    (objective,) = node().build(**{**given, "ddpm": 0, "pfg": 0, "etg": 0, "latent": 1})
    assert objective == LATENT
    _, report = protect(target, objective=objective)
    assert report[:3] == ["own objective, 8 levels, 4 steps, seed 3", "latent term over 2 VAEs",
                          "not used: 1 pixel denoiser"]  # fmt: skip


@pytest.mark.parametrize(
    ("protection", "expected"),
    [
        ("strong", ["without a latent term: VAE Targets is not used"]),
        (replace(PRESETS["robust"], ddpm=1), ["latent term over 2 VAEs", "denoising terms over 1 diffusion model"]),
        ("advdm", ["not used: VAE Targets"]),
        ("photoguard", ["over 2 VAEs of VAE Targets", "not used: 1 pixel denoiser"]),
        ("pid", ["over 2 VAEs of VAE Targets", "not used: 1 pixel denoiser"]),
    ],
)
def test_what_is_used_of_a_combination(protection, expected, vaes, tiny):
    target = combine(tiny, build(*vaes), "mean")
    assert used_terms(protection, target) == expected
    clean = IMAGE.movedim(-1, 1)
    only = tiny if "not used" in expected[0] or "without" in expected[0] else None
    if only is not None:  # what is not used has no influence
        both, alone = (apply_protection(protection, clean[..., :16, :16], one) for one in (target, only))
        assert torch.equal(both, alone)


@pytest.mark.parametrize("preset", ["strong", "paper", "advdm", "mist", "mist_semantic", "simac"])
def test_what_asks_a_diffusion_model_says_so_before_anything_is_loaded(preset, vaes, monkeypatch):
    monkeypatch.setattr(host, "ready", lambda _: pytest.fail("a model was loaded"))
    with pytest.raises(AntiPureError, match="a diffusion model.*; wire .*Denoiser from Model") as caught:
        protect(build(*vaes), preset)
    assert "\n" not in str(caught.value)


def test_the_latent_of_a_vae_is_not_to_be_had_of_a_pixel_denoiser(tiny, monkeypatch):
    monkeypatch.setattr(host, "ready", lambda _: pytest.fail("a model was loaded"))
    for settings in ({"preset": "photoguard"}, {"preset": "pid"}):
        with pytest.raises(AntiPureError, match="latent of a VAE.*; wire VAE Targets or Denoiser from Model"):
            protect(tiny, **settings)


def test_where_only_a_diffusion_model_serves_vaes_alone_are_refused(vaes):
    alone, sentence = build(*vaes), "VAE Targets is made of VAEs alone; wire Load Pixel Denoiser"
    with pytest.raises(AntiPureError, match=sentence):
        NODE_CLASS_MAPPINGS["AntiPureDiffusionPurify"]().purify(IMAGE, alone, "gridpure", 2, 1, 0.1, 0)
    report = NODE_CLASS_MAPPINGS["AntiPureRobustnessReport"]()
    for wired in ({"denoiser": alone}, {"denoiser": alone, "held_out": alone}):
        with pytest.raises(AntiPureError, match=sentence):
            report.measure(IMAGE, IMAGE, "", "gridpure1", "", 0, 0, 1, 1, **wired)
    with pytest.raises(AntiPureError, match=sentence):
        NODE_CLASS_MAPPINGS["AntiPureTrainModelPatch"]().train(alone, IMAGE, "No", 1, 1, 4, "scalar", 1e-3, 0)


class Borrowed:
    """A VAE as the host lends it: what `host.ready` has to know of it."""

    latent_dim, latent_channels, device, vae_dtype = 2, 4, "cpu", torch.float32

    def __init__(self):
        self.first_stage_model = network = Halving()
        self.patcher = types.SimpleNamespace(model=network)

    def spacial_compression_encode(self):
        return 8

    def process_input(self, image):
        return image * 2 - 1

    def process_output(self, image):
        return (image + 1) / 2

    def memory_used_encode(self, shape, dtype):
        return 7.0


class Halving(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 192, 1, 1))

    def encode(self, image):
        return nn.functional.pixel_unshuffle(image, 8) * self.weight

    def decode(self, latent):
        return latent.repeat(1, 48, 1, 1).reshape(len(latent), 3, -1, 8)


def test_the_host_makes_room_for_all_of_them_at_once_and_gets_its_weights_back(comfyui):
    borrowed = [Borrowed(), Borrowed()]
    target = build(*borrowed)
    weights = [one.first_stage_model.weight for one in borrowed]
    with torch.inference_mode():
        protected = protect(target)[0]
    ((patchers, options),) = comfyui.loaded
    assert patchers == [one.patcher for one in borrowed]
    assert options["memory_required"] == 14
    assert 0 < float((protected - IMAGE).abs().max()) <= 8.01 / 255
    assert all(one.first_stage_model.weight is weight for one, weight in zip(borrowed, weights, strict=True))
    assert not torch.equal(protected, protect(build(borrowed[0]))[0])


def test_a_vae_that_two_members_work_over_counts_once():
    vae = Borrowed()
    target = combine(build(vae), build(Borrowed(), vae), "mean")
    assert len(encoders_of(target)) == 2


def test_a_restriction_keeps_how_the_members_are_combined(tiny, make_tiny, vaes):
    other = make_tiny(seed=9)
    target = combine(combine(tiny, build(vaes[0]), "worst"), combine(other, build(vaes[1]), "mean"), "mean")
    assert restricted(target, lambda _: True) is target
    assert restricted(target, lambda member: member is not other).mode == "mean"
    nested = combine(combine(tiny, build(vaes[0]), "worst"), other, "mean")
    inner, last = restricted(nested, lambda member: True).members
    assert (inner.mode, last) == ("worst", other)
    assert restricted(nested, lambda member: member is tiny) is tiny
    assert restricted(nested, lambda member: False) is None


def test_a_combination_is_where_its_denoisers_are(tiny, vaes):
    away = types.SimpleNamespace(device=torch.device("meta"))
    assert combine(VaeTargets((away,)), tiny, "mean").device == tiny.device
    assert combine(VaeTargets((away,)), build(vaes[0]), "mean").device == torch.device("meta")
