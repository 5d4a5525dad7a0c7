"""The trainer of the bundled VAE encoder."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.diffusion.autoencoder import load_autoencoder
from antipure.methods.pictures import to_pixels


@pytest.fixture
def trainer(tool):
    return tool("train_small_vae")


@pytest.fixture
def small(trainer):
    torch.manual_seed(0)
    network = trainer.initial(None, 8)
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2)
    return network


def test_the_file_holds_the_encoder_with_its_norm(trainer, small, tmp_path):
    """What is loaded encodes as the network does behind its batch norm, but for fp16."""
    trainer.save(small, tmp_path / "mine.safetensors", {"steps": 0})
    pictures = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        expected = small.eval().encode(pictures)
        found = load_autoencoder(tmp_path / "mine.safetensors").encode(to_pixels(pictures))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=5e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


def test_it_goes_on_from_an_autoencoder_of_the_other_tool(trainer, small, tmp_path):
    from safetensors.torch import save_file

    state = small.exported()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "whole.safetensors")
    again = trainer.initial(tmp_path / "whole.safetensors", 8)
    for key, value in again.state_dict().items():
        if key.startswith("taesd"):
            assert torch.equal(value, state[key].float()), key
    save_file({k: v for k, v in state.items() if "decoder" not in k}, tmp_path / "half.safetensors")
    with pytest.raises(SystemExit, match="lacks taesd_decoder"):
        trainer.initial(tmp_path / "half.safetensors", 8)


def test_steps_reach_all_weights_and_make_the_round_trip_better(trainer, small):
    class Tiles:
        def batch(self, count: int) -> torch.Tensor:
            ramp = torch.linspace(-1, 1, 16)
            return (ramp[:, None] * torch.rand(count, 3, 1, 1) + torch.rand(count, 3, 1, 1) - 0.5).expand(
                -1, -1, -1, 16
            )

    tiles = Tiles()
    before = trainer.measure(small, tiles, 8, 32)
    optimizer = torch.optim.Adam(small.parameters(), 3e-3)
    for step in range(40):
        small.train()
        optimizer.zero_grad()
        trainer.step_loss(small, (tiles.batch(8) + 1) / 2).backward()
        if step == 0:
            assert all(parameter.grad is not None for parameter in small.parameters())
        optimizer.step()
    assert trainer.measure(small, tiles, 8, 32) > before + 2
    with torch.no_grad():
        latents = small.encode((tiles.batch(32) + 1) / 2)
    assert 0.5 < latents.std() < 2
