"""Feature alignment: values, gradients, each encoder's own size and normalisation, and encoders from local files."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from antipure.methods.errors import AntiPureError
from antipure.methods.lora_patching.mmfa import MMFA
from antipure.methods.metrics.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Encoder,
    resnet50_encoder,
    transformers_encoder,
)
from safetensors.torch import save_file
from torch import nn

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def encoder(seed: int = 0, size: int | None = 12, width: int = 7) -> Encoder:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, width)
    )
    return Encoder(f"tiny {seed}", module.double(), size, module=module)


def pixels(seed: int, side: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def assert_differentiable(e: Encoder, side: int) -> None:
    x = pixels(5, side, 1).float().requires_grad_()
    e(x).square().sum().backward()
    assert x.grad.abs().max() > 0


class Double(Encoder):
    """As `Encoder`, in double precision for finite differences."""

    def __call__(self, x):
        x = (x + 1) / 2
        return self.embed((x - 0.5) / 0.25)


def double(seed: int) -> Double:
    e = encoder(seed)
    return Double(e.name, e.embed, None, module=e.module)


def test_encoders_see_their_own_size_and_normalisation():
    seen = []
    x = pixels(0).float()

    def embed(picture):
        seen.append(picture)
        return picture.mean((2, 3))

    Encoder("a", embed, None, CLIP_MEAN, CLIP_STD)(x)
    Encoder("b", embed, 16)(x)
    Encoder("c", embed, 10)(x)
    for picture, mean, std in ((seen[0], CLIP_MEAN, CLIP_STD), (seen[1], IMAGENET_MEAN, IMAGENET_STD)):
        for c in range(3):
            torch.testing.assert_close(picture[:, c], ((x[:, c] + 1) / 2 - mean[c]) / std[c])
    assert seen[2].shape == (2, 3, 10, 10)


def test_the_value_is_the_papers():
    f, e = encoder(1), encoder(2)
    f.module.float()
    e.module.float()
    y, target = pixels(1).float(), pixels(2).float()
    mmfa = MMFA(f, e)
    got = mmfa(y, mmfa.features(target))
    distance = (f(y) - f(target)).square().mean()
    a, b = e(y), e(target)
    cosine = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
    torch.testing.assert_close(got, 0.1 * distance + 0.1 * (1 - cosine))
    only = MMFA(None, e)
    torch.testing.assert_close(only(y, only.features(target)), 0.1 * (1 - cosine))
    assert mmfa(y, mmfa.features(y)).abs() < 1e-6
    assert mmfa.describe()["backbone"] == "tiny 1"
    assert only.describe() == {
        "backbone": None,
        "backbone_weight": 0.0,
        "language": "tiny 2",
        "language_weight": 0.1,
    }


def test_gradients_reach_the_output_and_only_it():
    f, e = encoder(1), encoder(2)
    f.module.float()
    e.module.float()
    y = pixels(1).float().requires_grad_()
    mmfa = MMFA(f, e)
    features = mmfa.features(pixels(2).float())
    assert not any(v.requires_grad for v in features)
    mmfa(y, features).backward()
    assert torch.isfinite(y.grad).all()
    assert y.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(p.grad is None and not p.requires_grad for p in (*f.module.parameters(), *e.module.parameters()))


def test_gradients_are_those_of_the_value():
    f, e = double(1), double(2)
    target = pixels(4, 8, 1)
    with torch.no_grad():
        features = (f(target), e(target))

    def value(y):
        cosine = F.cosine_similarity(e(y), features[1])
        return 0.1 * F.mse_loss(f(y), features[0]) + 0.1 * (1 - cosine).mean()

    y = pixels(3, 8, 1).requires_grad_()
    # Some CPUs' libraries add up in another order from call to call.
    assert torch.autograd.gradcheck(value, (y,), nondet_tol=1e-10)
    (expected,) = torch.autograd.grad(value(y), y)
    mmfa = MMFA(f, e)
    (got,) = torch.autograd.grad(mmfa(y, mmfa.features(target)), y)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-8)


def test_outputs_beyond_the_range_still_have_a_gradient():
    e = encoder(1)
    e.module.float()
    y = torch.full((1, 3, 16, 16), 1.2).requires_grad_()
    e(y).sum().backward()
    assert y.grad.abs().max() > 0


def test_any_callable_will_do_if_it_passes_gradients():
    def foreign(x):
        return x.mean((2, 3))

    mmfa = MMFA(foreign, None).to("cpu")
    assert mmfa(pixels(0), mmfa.features(pixels(1))) > 0
    with pytest.raises(AntiPureError, match="one vector per picture"):
        MMFA(lambda x: x, None).features(pixels(0))
    with pytest.raises(AntiPureError, match="without an encoder"):
        MMFA(None, None)


@pytest.fixture
def clip_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    folder = tmp_path / "clip-vision"
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    settings = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_transformers_folder(clip_folder):
    transformers = pytest.importorskip("transformers")
    e = transformers_encoder(clip_folder)
    assert (e.name, e.size, e.mean, e.std) == ("clip-vision", 16, CLIP_MEAN, CLIP_STD)
    x = pixels(0, 16).float()
    model = transformers.CLIPVisionModel.from_pretrained(clip_folder)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    expected = model(pixel_values=((x + 1) / 2 - mean) / std).pooler_output
    torch.testing.assert_close(e(x), expected)
    assert_differentiable(e, 24)
    y = pixels(1, 20).float().requires_grad_()
    mmfa = MMFA(None, e)
    mmfa(y, mmfa.features(pixels(2, 20).float())).backward()
    assert y.grad.abs().max() > 0


def test_the_projected_embedding_of_a_vision_language_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    e = transformers_encoder(tmp_path / "clip")
    assert e(pixels(0).float()).shape == (2, 6)
    assert e.size == 16
    assert_differentiable(e, 16)


def test_blips_image_embedding(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 8, "encoder_hidden_size": 16},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    transformers.BlipModel(config).save_pretrained(tmp_path / "blip")
    e = transformers_encoder(tmp_path / "blip")
    vectors = e(pixels(0).float())
    assert vectors.ndim == 2
    assert len(vectors) == 2
    assert_differentiable(e, 16)


def test_transformers_folders_that_cannot_be_used(clip_folder, tmp_path):
    transformers = pytest.importorskip("transformers")

    def refuse(folder, message):
        with pytest.raises(AntiPureError, match=message) as caught:
            transformers_encoder(folder)
        assert "\n" not in str(caught.value)

    refuse(tmp_path / "nowhere", "There is no encoder in")
    text = tmp_path / "text"
    transformers.BertModel(
        transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(text)
    refuse(text, "takes no pictures")
    (clip_folder / "preprocessor_config.json").write_text("{")
    refuse(clip_folder, "is not valid JSON")
    (clip_folder / "preprocessor_config.json").write_text('{"image_std": [0, 0, 0]}')
    refuse(clip_folder, "no usable normalisation")
    weights = clip_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refuse(clip_folder, "cannot be read as a transformers model")
    weights.unlink()
    (clip_folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    refuse(clip_folder, "no safetensors weights")


def test_state_dicts_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(AntiPureError, match="There is no encoder at"):
        resnet50_encoder(tmp_path / "missing.pth")
    evil = tmp_path / "evil.pth"
    torch.save({"a": print}, evil)
    with pytest.raises(AntiPureError, match="could run code|read safely"):
        resnet50_encoder(evil)
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(AntiPureError, match="no plain state dict"):
        resnet50_encoder(tmp_path / "epoch.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(AntiPureError, match="needs the package"):
        resnet50_encoder(tmp_path / "a.safetensors")


def test_resnet50_from_a_state_dict(tmp_path, monkeypatch):
    """With a stand-in for torchvision, so that the test needs no 100 MB network."""
    import types

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))

    models = types.ModuleType("torchvision.models")
    models.resnet50 = lambda weights: Tiny()
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    original = Tiny()
    wrapped = {"module." + key: value for key, value in original.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 90}, tmp_path / "wrapped.pth")
    assert torch.equal(resnet50_encoder(tmp_path / "wrapped.pth").module.conv.weight, original.conv.weight)
    torch.save(original.state_dict(), tmp_path / "resnet50.pth")
    e = resnet50_encoder(tmp_path / "resnet50.pth")
    assert (e.size, e.mean) == (224, IMAGENET_MEAN)
    assert e(pixels(0).float()).shape == (2, 4)
    assert torch.equal(e.module.conv.weight, original.conv.weight)
    assert_differentiable(e, 32)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(AntiPureError, match="weights of a ResNet-50"):
        resnet50_encoder(tmp_path / "other.safetensors")
