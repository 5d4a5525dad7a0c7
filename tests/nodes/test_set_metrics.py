"""The node Set Metrics."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.encoders import Encoder
from antipure.methods.metrics.lpips import AlexNet
from antipure.nodes.set_metrics import SetMetrics


def measure(**inputs) -> tuple:
    """As ComfyUI does: in inference mode."""
    with torch.inference_mode():
        return SetMetrics().measure(**inputs)["result"]


def eight_bit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def test_set_metrics_names_its_space_and_warns_about_few_pictures():
    first, second = eight_bit(4, 20, 20, 3), eight_bit(3, 24, 18, 3, seed=1)
    fid, kid, diversity, report = measure(reference=first, image=second, seed=0)
    assert f"FID {fid:.4f}" in report
    assert f"KID {kid:.6f}" in report
    assert f"diversity {diversity:.4f}" in report
    assert "features: bundled denoiser, middle block" in report
    assert "n = 4 and 3 pictures" in report
    assert "Fewer than 2048 pictures" in report
    with pytest.raises(AntiPureError, match="at least 2"):
        measure(reference=first[:1], image=second, seed=0)


def test_set_metrics_with_an_own_encoder_and_lpips():
    torch.manual_seed(0)
    alexnet = AlexNet()
    encoder = Encoder("AlexNet (mine)", alexnet, 64, module=alexnet)
    images = eight_bit(3, 40, 40, 3)
    report = measure(reference=images, image=images, seed=0, encoder=encoder, lpips=encoder)[3]
    assert "features: AlexNet (mine)" in report
    assert "LPIPS, AlexNet (mine), 3 pairs" in report
    assert "FID 0.0000" in report
    with pytest.raises(AntiPureError, match="LPIPS needs AlexNet"):
        measure(reference=images, image=images, seed=0, lpips=Encoder("x", lambda x: x.flatten(1)))
