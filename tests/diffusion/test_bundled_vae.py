"""The bundled VAE encoder: what it is, against diffusers' class, and that what moves it moves strangers' VAEs."""

from __future__ import annotations

import pytest
import torch
from antipure.benchmarks import strangers
from antipure.methods.antipure.objective import Objective
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.ensemble import bundled_vae_targets
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.diffusion.autoencoder import BUNDLED_VAE, load_autoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.pictures import to_pixels
from antipure.methods.purification.transforms import parse_transform
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

CHANNELS = 16


@pytest.fixture(scope="module")
def bundled():
    return bundled_vae_targets().autoencoders[0]


def test_it_is_small_and_says_what_it_is(bundled):
    assert BUNDLED_VAE.stat().st_size <= 3_000_000
    assert (bundled.name, bundled.multiple, bundled.channels, bundled.decodes) == ("bundled", 8, CHANNELS, False)
    with pytest.raises(AntiPureError, match="an encoder alone and cannot decode"):
        bundled.decode(torch.zeros(1, CHANNELS, 4, 4))


def test_latents_are_those_of_diffusers_and_of_unit_deviation(bundled, face):
    theirs = AutoencoderTiny(latent_channels=CHANNELS).eval()
    state = {f"layers.{key}": value.float() for key, value in load_file(BUNDLED_VAE).items()}
    theirs.encoder.load_state_dict(state)
    with torch.no_grad():
        found = bundled.encode(to_pixels(face))
        torch.testing.assert_close(found, theirs.encode(to_pixels(face)).latents, rtol=1e-3, atol=1e-4)
    assert 0.5 < found.std() < 2
    assert (found.std((0, 2, 3)) > 0.1).all(), "no channel is dead"


def test_what_moves_it_moves_a_real_vae_through_the_trainers_resize(face):
    """At half size, where random signs are averaged away; the file of the real one was never trained with."""
    found = strangers.vae_files()
    if "sd15" not in found:
        pytest.skip(strangers.missing())
    real, half = load_autoencoder(found["sd15"]), parse_transform("shrink0.5")
    crop = face[..., 32:96, 32:96].contiguous()
    latent = Objective(ddpm=0, pfg=0, etg=0, latent=1, first_step=0.375)
    moved = protect(crop, bundled_vae_targets(), latent, AttackSettings(8, 8, seeds=1))
    noise = apply_control("random", crop, AttackSettings(8, seeds=1))
    shifts = [float(latent_shift(crop, x, real, view=half, draws=1).value) for x in (moved, noise)]
    assert shifts[0] > 1.5 * shifts[1]
