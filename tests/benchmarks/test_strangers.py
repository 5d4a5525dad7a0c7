"""Where strangers' weights are found, and that they are loaded once."""

from __future__ import annotations

import pytest
import torch
from antipure.benchmarks import strangers
from diffusers import AutoencoderTiny
from safetensors.torch import save_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(strangers.VARIABLE, str(tmp_path))
    strangers.load_vaes.cache_clear()
    yield tmp_path
    strangers.load_vaes.cache_clear()


def test_what_is_there_is_loaded_once_and_the_rest_is_named(folder):
    assert strangers.load_vaes() == {}
    strangers.load_vaes.cache_clear()
    torch.manual_seed(0)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    (folder / "vae").mkdir()
    save_file(vae.state_dict(), folder / "vae" / "taesd_sd3.safetensors")
    (folder / "vae" / "taef2_encoder.pth").write_bytes(b"without its decoder")
    found = strangers.load_vaes()
    assert list(found) == ["sd3"]
    assert found["sd3"].name == "sd3"
    assert strangers.load_vaes()["sd3"] is found["sd3"]
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(found["sd3"].encode(x), vae.encode(x).latents, atol=1e-6)
    for missing in ("sd15", "sdxl", "flux1", "flux2", "FFDNet"):
        assert missing in strangers.missing()
    assert "sd3" not in strangers.missing()
