"""Published protections: each loss against a restatement of its formula, budgets, seeds, and networks left as found."""

from __future__ import annotations

import math
import re
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from antipure.cli.main import build_parser
from antipure.methods.attacks.ensemble import CombinedDenoiser, VaeTargets
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.baselines import BASELINES, _make_loss, apply_baseline, surrogate
from antipure.methods.baselines.advdm import advdm_loss
from antipure.methods.baselines.anti_dreambooth import aspl
from antipure.methods.baselines.mist import mist_loss, target_pattern
from antipure.methods.baselines.photoguard import photoguard_loss
from antipure.methods.baselines.pid import pid_loss
from antipure.methods.baselines.simac import SimacLoss, decoder_blocks, select_timesteps, simac
from antipure.methods.diffusion import autoencoder
from antipure.methods.diffusion.autoencoder import Autoencoder
from antipure.methods.diffusion.denoiser import Denoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import pad_reflect, random_positions, random_stream, round_8bit, to_pixels
from antipure.nodes.protect import Protect
from torch import nn

TILE = 16
LATENT_ONLY = ("photoguard", "mist", "mist_textural", "pid")
CHANGES_NETWORK = ("anti_dreambooth_aspl", "simac")


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, t):
        return x + torch.tanh(self.conv(x) + t)


class Net(nn.Module):
    """A network whose parts are named as a U-Net's."""

    def __init__(self, channels: int, decoder: str = "up_blocks"):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)
        self.down_blocks = nn.ModuleList([Block(6)])
        setattr(self, decoder, nn.ModuleList([Block(6) for _ in range(4)]))
        self.decoder = decoder

    def forward(self, x, t):
        t = (t.float() / 1000).view(-1, 1, 1, 1)
        x = self.first(x)
        for block in (*self.down_blocks, *getattr(self, self.decoder)):
            x = block(x, t)
        return self.last(x)


class Toy(Denoiser):
    """A tiny denoiser over pixels, or over the latents of a strided convolution."""

    tile, multiple, clip_x0 = TILE, 2, False

    def __init__(self, latent: bool = True, steps: int = 100, decoder: str = "up_blocks"):
        torch.manual_seed(3)
        self.latent = latent
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-3, 0.06, steps), 0)
        self.vae = nn.Conv2d(3, 4, 2, stride=2).requires_grad_(False)
        self.net = Net(4 if latent else 3, decoder).requires_grad_(False)

    def encode(self, pixels):
        return self.vae(pixels) if self.latent else pixels

    def decode(self, latent):
        raise AssertionError("no baseline needs it")

    def predict(self, x_t, t):
        return self.net(x_t, t), None

    @property
    def network(self):
        return self.net

    def bytes_per_pixel(self):
        return 100.0


@pytest.fixture
def toy() -> Toy:
    return Toy()


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return round_8bit(torch.rand(*shape, generator=torch.Generator().manual_seed(seed)))


def pixels_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return to_pixels(picture(1, 3, height, width, seed=seed))


def total(loss, pixels, seed: int = 0) -> float:
    with torch.no_grad():
        return float(sum(loss.terms(pixels, random_stream(seed))))


def tiles_of(pixels, companion, seed):
    """(tile, companion's tile, own random stream) of the tiles that `TiledLoss` cuts under this seed."""
    height, width = (max(side, TILE) for side in pixels.shape[-2:])
    generator = random_stream(seed)
    positions = random_positions(height, width, TILE, generator)
    root = int(torch.randint(2**62, (), generator=generator))
    x, y = pad_reflect(pixels, height, width), pad_reflect(companion, height, width)
    for i, (top, left) in enumerate(positions):
        where = (..., slice(top, top + TILE), slice(left, left + TILE))
        yield x[where], y[where], random_stream(root, i)


def noised(denoiser, tile, own, timesteps):
    """z_t, t and eps as the papers draw them: t uniform, then eps."""
    t = timesteps[int(torch.randint(len(timesteps), (1,), generator=own))]
    z = denoiser.encode(tile)
    eps = torch.randn(z.shape[1:], generator=own)[None]
    abar = float(denoiser.alphas_cumprod[t])
    return math.sqrt(abar) * z + math.sqrt(1 - abar) * eps, torch.tensor([t]), eps


def slow_ddpm(denoiser, tile, own) -> float:
    x_t, t, eps = noised(denoiser, tile, own, range(denoiser.timesteps))
    return float(np.mean((denoiser.predict_noise(x_t, t).double().numpy() - eps.double().numpy()) ** 2))


def slow_distance(denoiser, tile, target) -> float:
    return float(((denoiser.encode(tile).double() - denoiser.encode(target).double()).numpy() ** 2).sum())


@pytest.mark.parametrize(("height", "width"), [(24, 40), (7, 20)])
def test_advdm_and_mist_semantic_are_the_denoising_loss_over_all_timesteps(tiny, height, width):
    x, clean = pixels_of(height, width, 1), pixels_of(height, width)
    with torch.no_grad():
        expected = np.mean([slow_ddpm(tiny, tile, own) for tile, _, own in tiles_of(x, clean, 5)])
    assert total(advdm_loss(tiny, clean), x, 5) == pytest.approx(expected, rel=1e-5)
    assert total(mist_loss(tiny, clean, "semantic"), x, 5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (7, 20)])
def test_photoguard_is_minus_the_distance_to_the_latent_of_grey(toy, height, width):
    x, grey = pixels_of(height, width, 1), torch.zeros(1, 3, height, width)
    with torch.no_grad():
        expected = -np.mean([slow_distance(toy, tile, aim) for tile, aim, _ in tiles_of(x, grey, 5)])
    assert total(photoguard_loss(toy, pixels_of(height, width)), x, 5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["textural", "fused"])
def test_mist_pulls_towards_its_pattern_and_weighs_the_denoising_loss_with_ten_thousand(toy, mode):
    x, target = pixels_of(24, 40, 1), target_pattern(24, 40)
    expected = []
    with torch.no_grad():
        for tile, aim, own in tiles_of(x, target, 5):
            value = -slow_distance(toy, tile, aim)
            expected.append(value + 1e4 * slow_ddpm(toy, tile, own) if mode == "fused" else value)
    assert total(mist_loss(toy, pixels_of(24, 40), mode), x, 5) == pytest.approx(np.mean(expected), rel=1e-5)


def test_mists_target_has_full_contrast_and_both_colours_everywhere():
    pattern = target_pattern(96, 128)
    assert pattern.abs().min() == 1
    for block in pattern[0, 0].unfold(0, 32, 32).unfold(1, 32, 32).flatten(0, 1):
        assert 0.2 < (block > 0).float().mean() < 0.8


class Variational(Autoencoder):
    """A VAE that gives a variance, or none."""

    name, multiple, channels, device = "variational", 2, 4, torch.device("cpu")

    def __init__(self, variance: bool = True, seed: int = 5):
        torch.manual_seed(seed)
        self.variance = variance
        self.net = nn.Conv2d(3, 8, 2, stride=2).requires_grad_(False)

    def moments(self, pixels):
        mean, log_variance = self.net(pixels).chunk(2, 1)
        return mean, torch.tanh(3 * log_variance) if self.variance else None

    def encode(self, pixels):
        return self.moments(pixels)[0]

    def decode(self, latent):
        return nn.functional.interpolate(latent[:, :3], scale_factor=2)


def slow_pid(vae: Variational, pixels, clean) -> float:
    weight, bias = vae.net.weight.double().numpy(), vae.net.bias.double().numpy()

    def encoded(x):
        blocks = x[0].double().numpy().reshape(3, x.shape[2] // 2, 2, x.shape[3] // 2, 2)
        out = np.einsum("oiab,ihawb->ohw", weight, blocks) + bias[:, None, None]
        return out[:4], np.tanh(3 * out[4:])

    (mean, log_variance), (mean_0, log_variance_0) = encoded(pixels), encoded(clean)
    shift = np.mean((mean - mean_0) ** 2)
    return float(shift + np.mean((log_variance - log_variance_0) ** 2) if vae.variance else shift)


@pytest.mark.parametrize("variance", [True, False])
@pytest.mark.parametrize(("height", "width"), [(24, 40), (7, 20)])
def test_pid_is_the_squared_shift_of_mean_and_log_variance(variance, height, width, monkeypatch):
    monkeypatch.setattr(autoencoder, "TILE", TILE)
    vae, x, clean = Variational(variance), pixels_of(height, width, 1), pixels_of(height, width)
    expected = np.mean([slow_pid(vae, tile, still) for tile, still, _ in tiles_of(x, clean, 5)])
    assert total(pid_loss(vae, clean), x, 5) == pytest.approx(expected, rel=1e-5)
    assert total(pid_loss(vae, clean), clean, 5) == 0


def test_pid_of_a_latent_denoiser_without_a_variance_is_the_shift_of_its_latent(toy):
    x, clean = pixels_of(24, 40, 1), pixels_of(24, 40)
    with torch.no_grad():
        expected = np.mean(
            [((toy.encode(tile) - toy.encode(still)) ** 2).mean() for tile, still, _ in tiles_of(x, clean, 5)]
        )
    assert total(pid_loss(toy, clean), x, 5) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["photoguard", "mist_textural", "pid"])
def test_vaes_alone_are_attacked_by_the_mean_of_their_losses(name):
    vaes, x = (Variational(), Variational(False, seed=6)), picture(1, 3, 20, 24)
    losses = {"photoguard": photoguard_loss, "pid": pid_loss, "mist_textural": partial(mist_loss, mode="textural")}
    make, settings = losses[name], replace(BASELINES[name].settings, steps=12)
    protected = apply_baseline(name, x, VaeTargets(vaes), settings)
    change = ((protected - x) * 255).round().abs()
    assert 6 <= change.max() <= BASELINES[name].levels
    clean = to_pixels(x)
    combined = _make_loss(BASELINES[name], VaeTargets(vaes), ExitStack())(clean)
    parts = [total(make(vae, clean), to_pixels(protected)) for vae in vaes]  # one tile: no stream matters
    assert total(combined, to_pixels(protected)) == pytest.approx(np.mean(parts), rel=1e-5)
    signs = torch.randint(2, x.shape, generator=random_stream(1)) * 2.0 - 1
    beside = to_pixels((x + signs * BASELINES[name].levels / 255).clamp(0, 1))
    assert total(combined, to_pixels(protected)) > max(total(combined, beside), total(combined, clean))


def test_mists_denoising_loss_is_not_to_be_had_of_a_vae():
    with pytest.raises(AntiPureError, match="take its textural mode"):
        mist_loss(Variational(), pixels_of(8, 8))


def test_simac_adds_the_change_of_the_last_three_decoder_blocks(toy):
    x, clean, chosen = pixels_of(24, 40, 1), pixels_of(24, 40), torch.tensor([4, 30, 77])
    blocks = decoder_blocks(toy.net)
    assert blocks == list(toy.net.up_blocks)[-3:]

    def features(x_t, t):
        shift, out = t.float().view(-1, 1, 1, 1) / 1000, []
        h = toy.net.down_blocks[0](toy.net.first(x_t), shift)
        for block in toy.net.up_blocks:
            h = block(h, shift)
            out.append(h.double().numpy())
        return out[-3:], toy.net.last(h).double().numpy()

    expected = []
    with torch.no_grad():
        for tile, reference, own in tiles_of(x, clean, 5):
            state = own.get_state()
            x_t, t, eps = noised(toy, tile, own, chosen.tolist())
            own.set_state(state)
            clean_t, _, _ = noised(toy, reference, own, chosen.tolist())
            (changed, eps_hat), (before, _) = features(x_t, t), features(clean_t, t)
            feat = np.mean([np.mean((a - b) ** 2) for a, b in zip(changed, before, strict=True)])
            expected.append(np.mean((eps_hat - eps.double().numpy()) ** 2) + feat)
    assert total(SimacLoss(toy, blocks, clean, chosen), x, 5) == pytest.approx(np.mean(expected), rel=1e-5)


def test_simacs_feature_term_has_a_gradient(toy):
    clean, x = pixels_of(16, 16), pixels_of(16, 16, 1).requires_grad_()
    grads = []
    for blocks in (decoder_blocks(toy.net), decoder_blocks(toy.net)[:1]):
        loss = sum(SimacLoss(toy, blocks, clean, torch.tensor([50])).terms(x, random_stream(0)))
        grads.append(torch.autograd.grad(loss, x)[0])
    assert not torch.allclose(*grads, rtol=1e-2)


class Step(Toy):
    """No gradient reaches the picture below the middle of the schedule."""

    def predict(self, x_t, t):
        return x_t * (t >= self.timesteps // 2).float().view(-1, 1, 1, 1), None


def test_simac_selects_the_timesteps_whose_gradient_is_largest():
    denoiser = Step(latent=False)
    chosen = select_timesteps(denoiser, pixels_of(16, 16), random_stream(0))
    assert 0 < len(chosen) <= 10
    assert (chosen >= 50).all()
    assert torch.equal(chosen, select_timesteps(denoiser, pixels_of(16, 16), random_stream(0)))


def loss_to_judge(name: str, denoiser, clean):
    """What the attack raises, on the denoiser as it was given."""
    if name in ("photoguard",):
        return photoguard_loss(denoiser, clean)
    if name.startswith("mist"):
        return mist_loss(denoiser, clean, {"mist": "fused"}.get(name, name.removeprefix("mist_")))
    if name == "pid":
        return pid_loss(denoiser, clean)
    if name == "simac":
        return SimacLoss(denoiser, decoder_blocks(denoiser.net), clean, torch.arange(0, 100, 5))
    return advdm_loss(denoiser, clean)


@pytest.mark.parametrize("name", BASELINES)
def test_protected_pictures_stay_in_the_budget_and_raise_the_loss_beyond_random_signs(toy, name):
    x, levels = picture(1, 3, 20, 24), BASELINES[name].levels
    protected = apply_baseline(name, x, toy, replace(BASELINES[name].settings, steps=20))
    change = ((protected - x) * 255).round().abs()
    assert torch.equal(protected, round_8bit(protected))
    assert int(levels) - 1 <= change.max() <= levels
    signs = torch.randint(2, x.shape, generator=random_stream(1)) * 2.0 - 1
    loss = loss_to_judge(name, toy, to_pixels(x))

    def judge(candidate):
        return np.mean([total(loss, to_pixels(candidate), 1000 + seed) for seed in range(8)])

    assert judge(protected) > max(judge(x), judge((x + signs * levels / 255).clamp(0, 1)))


@pytest.mark.parametrize("name", BASELINES)
def test_seeds_masks_and_neighbours(toy, name):
    x = picture(2, 3, 18, 30)
    mask = torch.zeros(2, 1, 18, 30)
    mask[..., 10:] = 1

    def run(x, **settings):
        return apply_baseline(name, x, toy, AttackSettings(levels=4, steps=2, **settings))

    both = run(x, seeds=[7, 8], mask=mask)
    assert torch.equal(both[..., :10], x[..., :10])
    assert ((both - x).abs() * 255).max() <= 4 + 1e-3
    assert (both != x).any()
    for i, seed in enumerate((7, 8)):
        assert torch.equal(run(x[i : i + 1], seeds=seed, mask=mask[:1]), both[i : i + 1])
    assert not torch.equal(run(x[:1], seeds=9, mask=mask[:1]), both[:1])


def snapshot(network):
    """Modules, parameters (objects and bits), trainability, hooks and attributes."""
    return (
        [(name, id(module), sorted(vars(module))) for name, module in network.named_modules()],
        [(name, id(p), p.requires_grad, p.grad is None) for name, p in network.named_parameters()],
        [p.detach().clone() for p in network.state_dict().values()],
        [len(module._forward_hooks) for module in network.modules()],
    )


def assert_untouched(before, network):
    after = snapshot(network)
    assert before[:2] == after[:2]
    assert before[3] == after[3]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("name", CHANGES_NETWORK)
@pytest.mark.parametrize("latent", [True, False])
def test_the_network_is_left_as_it_was_also_after_an_exception(name, latent):
    toy = Toy(latent)
    before, seen = snapshot(toy.net), []

    def cancel(done, *_):
        seen.append(any("lora" in key for key, _ in toy.net.named_parameters()))
        if done == 9:
            raise Cancelled

    with pytest.raises(Cancelled):
        apply_baseline(name, picture(2, 3, 16, 16), toy, replace(BASELINES[name].settings, steps=8, progress=cancel))
    assert all(seen), "the surrogate was on the network, also for the second picture"
    assert_untouched(before, toy.net)
    apply_baseline(name, picture(1, 3, 16, 16), toy, replace(BASELINES[name].settings, steps=2))
    assert_untouched(before, toy.net)


def test_aspl_of_a_real_unet(make_tiny):
    denoiser = make_tiny()
    before = snapshot(denoiser.unet)
    x = picture(1, 3, 16, 16)
    assert not torch.equal(
        apply_baseline(
            "anti_dreambooth_aspl", x, denoiser, replace(BASELINES["anti_dreambooth_aspl"].settings, steps=1)
        ),
        x,
    )
    assert_untouched(before, denoiser.unet)
    assert len(decoder_blocks(denoiser.unet)) == 3


def test_aspl_trains_on_clean_before_the_first_and_on_both_before_every_further_round(toy, monkeypatch):
    clean, log = pixels_of(16, 16), []
    train = surrogate.AlternatingLoss._train

    def logged(self, pixels, root, phase):
        before = self.applied.tensors()
        train(self, pixels, root, phase)
        moved = any(not torch.equal(v, before[k]) for k, v in self.applied.tensors().items())
        log.append((self.step, "clean" if torch.equal(pixels, clean) else "perturbed", moved))

    monkeypatch.setattr(surrogate.AlternatingLoss, "_train", logged)
    with aspl(toy) as make_loss:
        pgd((clean + 1) / 2, make_loss, AttackSettings(steps=13), step_levels=1)
    assert log == [(0, "clean", True), (6, "perturbed", True), (6, "clean", True)] + [
        (12, "perturbed", True),
        (12, "clean", True),
    ]


def test_aspl_forgets_what_it_learned_on_clean_and_keeps_what_it_learned_on_perturbed(toy):
    clean = pixels_of(16, 16)
    with aspl(toy) as make_loss:
        loss = make_loss(clean)
        start = loss.applied.tensors()
        for step in range(7):
            loss.prepare(pixels_of(16, 16, 1), random_stream(step))
            for term in loss.terms(pixels_of(16, 16, 1), random_stream(step)):
                assert term.requires_grad is False, "only the picture is differentiated"
            loss.stepped()
            if step < 6:
                assert all(torch.equal(v, start[k]) for k, v in loss.theta.items())
        assert any(not torch.equal(v, start[k]) for k, v in loss.theta.items())


def test_a_step_that_is_tried_again_does_not_train_again(toy, monkeypatch):
    trained = []
    monkeypatch.setattr(surrogate.AlternatingLoss, "_train", lambda self, *_: trained.append(self.step))
    with aspl(toy) as make_loss:
        loss = make_loss(pixels_of(16, 16))
        for _ in range(2):
            loss.prepare(pixels_of(16, 16), random_stream(0))
            next(iter(loss.terms(pixels_of(16, 16), random_stream(0))))  # left before its end
        with torch.no_grad():
            list(loss.terms(pixels_of(16, 16), random_stream(0)))  # only compared
        assert (trained, loss.step) == ([0], 0)
        loss.stepped()
        assert loss.step == 1


def test_without_training_aspl_is_the_denoising_loss_of_the_denoiser(toy, monkeypatch):
    monkeypatch.setattr(surrogate, "TRAINING_STEPS", 0)
    clean, x = pixels_of(24, 40), pixels_of(24, 40, 1)
    generator = random_stream(0)
    torch.randint(2**62, (), generator=generator)  # the surrogate's own stream
    with aspl(toy) as make_loss:
        value = total(make_loss(clean), x)
    with torch.no_grad():
        assert value == pytest.approx(float(sum(advdm_loss(toy, clean).terms(x, generator))), rel=1e-6)


@pytest.mark.parametrize("mode", ["mean", "worst"])
@pytest.mark.parametrize("name", ["advdm", "anti_dreambooth_aspl"])
def test_combined_denoisers_combine_the_losses(name, mode):
    members = (Toy(latent=True), Toy(latent=False))
    before = [snapshot(member.net) for member in members]
    x = picture(1, 3, 16, 16)
    assert not torch.equal(
        apply_baseline(name, x, CombinedDenoiser(members, mode), replace(BASELINES[name].settings, steps=8)), x
    )
    for member, state in zip(members, before, strict=True):
        assert_untouched(state, member.net)


def refused(match, name, denoiser):
    with pytest.raises(AntiPureError, match=match) as caught:
        apply_baseline(name, picture(1, 3, 16, 16), denoiser, replace(BASELINES[name].settings, steps=1))
    assert "\n" not in str(caught.value)


def test_wrong_denoisers_are_refused_with_a_sentence(tiny, spy, toy):
    for name in LATENT_ONLY:
        refused("Denoiser from Model", name, tiny)
    for name in CHANGES_NETWORK:
        refused("this Spy does not show", name, spy)
    refused("decoder blocks of a U-Net, and this Net has none", "simac", Toy(decoder="layers"))
    with pytest.raises(AntiPureError, match="no baseline 'glaze'"):
        apply_baseline("glaze", picture(1, 3, 16, 16), toy)
    refused("finite", "anti_dreambooth_aspl", NotFinite())
    with simac(toy), pytest.raises(AntiPureError, match="levels is 0"):
        apply_baseline("advdm", picture(1, 3, 16, 16), toy, replace(BASELINES["advdm"].settings, levels=0))


class NotFinite(Toy):
    def predict(self, x_t, t):
        return super().predict(x_t, t)[0] / 0, None


def test_true_budgets_in_8_bit_levels():
    assert {name: b.levels for name, b in BASELINES.items()} == {
        "advdm": 8,
        "photoguard": pytest.approx(0.06 * 127.5),
        "mist": 16,
        "mist_textural": 16,
        "mist_semantic": 16,
        "anti_dreambooth_fsmg": pytest.approx(0.05 * 127.5),
        "anti_dreambooth_aspl": pytest.approx(0.05 * 127.5),
        "simac": 8,
        "pid": 12.75,
    }
    assert all(b.steps >= 100 for b in BASELINES.values())


def protect(image, denoiser, preset, **settings):
    settings = {"levels": 8.0, "steps": 2, "seed": 4, **settings}
    with torch.inference_mode():
        return Protect().protect(image.clone(), denoiser, preset, **settings)


def test_the_node_offers_the_baselines_after_its_own_presets_and_none_last():
    choices = Protect.INPUT_TYPES()["required"]["preset"][0]
    own = ["robust", "robust_fast", "robust_set", "strong", "strong_shaped", "unrolled", "paper", "fast"]
    assert choices == [*own, "random", "shift", "blocks", "smooth", *BASELINES, "none"]


def test_the_shells_help_names_every_preset(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["protect", "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert set(Protect.INPUT_TYPES()["required"]["preset"][0]) <= words


@pytest.mark.parametrize("name", ["photoguard", "anti_dreambooth_aspl"])
def test_the_node_runs_a_baseline_in_inference_mode(toy, name):
    x = picture(1, 3, 18, 20)
    before = snapshot(toy.net)
    image, _, report = protect(x.permute(0, 2, 3, 1), toy, name)
    assert torch.equal(
        image.permute(0, 3, 1, 2), apply_baseline(name, x, toy, AttackSettings(levels=8, steps=2, seeds=4))
    )
    assert report.startswith(f"{name}, 8 levels, 2 steps, seed 4")
    assert_untouched(before, toy.net)


def test_none_is_the_picture_itself_in_8_bits(toy):
    x = torch.rand(1, 18, 20, 3, generator=random_stream(0))
    image, _, report = protect(x, toy, "none")
    assert torch.equal(image, round_8bit(x))
    assert report.startswith("no protection")
