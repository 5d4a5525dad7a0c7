"""Visual encoders' files: variants, shards, weights that no file holds, and configurations that ask for too much."""

from __future__ import annotations

import json

import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.encoders import file_encoder, transformers_encoder
from antipure.methods.metrics.lpips import AlexNet
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")


@pytest.fixture
def x():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    return transformers.ViTModel(config).eval()


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, message: str) -> None:
    with pytest.raises(AntiPureError, match=message) as caught:
        transformers_encoder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("settings", [{"variant": "fp16"}, {"max_shard_size": "4KB"}], ids=str)
def test_variants_and_shards_are_read(tmp_path, model, x, settings):
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "other", **settings)
    assert not (tmp_path / "other" / "model.safetensors").exists()
    assert torch.equal(transformers_encoder(tmp_path / "other")(x), transformers_encoder(tmp_path / "whole")(x))


def test_a_classifiers_encoder_gives_its_cls_token_and_nothing_made_up(tmp_path, model, x):
    """Published ViTs are classifiers, saved without a pooler; transformers would make a random one."""
    torch.manual_seed(1)
    classifier = transformers.ViTForImageClassification(model.config).eval()
    classifier.save_pretrained(tmp_path)
    picture = (x + 1) / 2
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = classifier.vit((picture - mean) / std).last_hidden_state[:, 0]
        torch.testing.assert_close(transformers_encoder(tmp_path)(x), expected)


def test_weights_that_no_file_holds_are_named(tmp_path, model):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if k != "layernorm.weight"}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    refused(tmp_path, "lack 'layernorm.weight'")


def test_weights_that_are_not_finite_are_named(tmp_path, model):
    with torch.no_grad():
        model.layernorm.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    refused(tmp_path, "'layernorm.weight' holds NaN or infinite weights")
    network = AlexNet()
    with torch.no_grad():
        next(network.parameters())[0] = float("inf")
    torch.save(network.state_dict(), tmp_path / "alexnet.pth")
    with pytest.raises(AntiPureError, match=r"alexnet\.pth cannot be used\. 'features.0.weight' holds NaN or infinite"):
        file_encoder(tmp_path / "alexnet.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 8192, "intermediate_size": 65536}, "asks for [0-9]{10,} weights, far more than its files"),
        ({"num_hidden_layers": 10**9}, r"asks for more than 1000 layers \(num_hidden_layers\)"),
        ({"vision_config": {"depths": [2, 10**9]}}, r"asks for more than 1000 layers \(depths\)"),
    ],
)
def test_no_memory_is_taken_for_what_only_a_configuration_describes(tmp_path, model, changes, message, monkeypatch):
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", None)  # nothing may come as far as this
    refused(tmp_path, message)


@pytest.mark.parametrize("settings", [{"image_mean": [float("nan"), 0, 0]}, {"image_std": 3}, {"image_mean": ["a"]}])
def test_a_normalisation_that_is_none_is_refused(tmp_path, model, settings):
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    refused(tmp_path, "no usable normalisation|is damaged")


def test_wrapped_alexnets_are_read(tmp_path):
    network = AlexNet()
    torch.save({"model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "wrapped.pth")
    found = file_encoder(tmp_path / "wrapped.pth").module
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in found.state_dict().items())
