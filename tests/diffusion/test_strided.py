"""The family of the held-out judge: it loads from its own format and is told the noise level."""

import json

import pytest
import torch
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.diffusion.strided import StridedUNet
from antipure.methods.errors import AntiPureError
from antipure.methods.purification.gridpure import gridpure
from safetensors.torch import save_file

SETTINGS = {"block_out_channels": [8, 16, 24], "encoder": [1, 1, 1], "decoder": [1, 1], "embedding": 16}
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def network(seed=0):
    torch.manual_seed(seed)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    net = StridedUNet(**SETTINGS, log_snr=(abar / (1 - abar)).log())
    with torch.no_grad():  # as built it predicts no noise at all
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def written(path, net, **changes):
    config = {"network": "strided", "unet": SETTINGS, "scheduler": SCHEDULER, "patch": 1, "tile": 64, **changes}
    save_file(net.state_dict(), path, metadata={"format": "antipure-pixel-denoiser", "config": json.dumps(config)})
    return path


def test_it_loads_as_it_was_and_purifies(tmp_path):
    net = network()
    denoiser = load_denoiser(written(tmp_path / "judge.safetensors", net))
    assert (denoiser.patch, denoiser.multiple, denoiser.tile) == (1, 4, 64)
    x, t = torch.rand(2, 3, 32, 48) * 2 - 1, torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(denoiser.predict_noise(x, t), net(x, t).sample, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(gridpure(torch.rand(1, 3, 40, 70) * 2 - 1, denoiser, iterations=1, seed=0)).all()


def test_samples_are_independent_and_the_timestep_counts():
    net, x = network().eval(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        both = net(x.expand(2, -1, -1, -1), torch.tensor([0, 100])).sample
        alone = net(x, torch.tensor([100])).sample
        scalar = net(x, torch.tensor(100)).sample
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scalar, alone)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_what_does_not_fit_is_named(tmp_path):
    path = written(tmp_path / "odd.safetensors", network(), unet={**SETTINGS, "block_out_channels": [8, 16, 32]})
    with pytest.raises(AntiPureError, match="odd.safetensors"):
        load_denoiser(path)
    path = written(tmp_path / "levels.safetensors", network(), unet={**SETTINGS, "decoder": [1]})
    with pytest.raises(AntiPureError, match="levels.safetensors"):
        load_denoiser(path)
