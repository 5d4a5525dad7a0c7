"""ADM checkpoints: the loaded UNet computes what OpenAI's own code computes.

data/adm_reference.json holds outputs of that code for random weights, and the recipe of the weights;
data/adm_256x256_uncond_shapes.json.gz the names and shapes of 256x256_diffusion_uncond.pt, and
data/adm_512x512_uncond_shapes.json.gz those of the same network with the multipliers for 512 pixels.
"""

from __future__ import annotations

import gzip
import json
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.diffusion.adm import adm_config, convert_adm_state_dict, is_adm_state_dict, load_adm_unet
from antipure.methods.errors import AntiPureError
from diffusers import UNet2DModel

DATA = Path(__file__).resolve().parents[1] / "data"
CASES = json.loads((DATA / "adm_reference.json").read_text())["cases"]
SMALL = "released layout in small"
CONV = "conv sampling, no scale-shift, one head"


def random_state(case: dict) -> dict[str, torch.Tensor]:
    """Weights by the recipe in adm_reference.json."""
    rng = np.random.RandomState(case["seed"])
    state = {}
    for key, shape in sorted(case["shapes"].items()):
        n = rng.standard_normal(shape)
        if len(shape) > 1:
            n = n / np.sqrt(np.prod(shape[1:]))
        else:
            n = 0.2 * n + key.endswith(".weight")
        state[key] = torch.from_numpy(n.astype(np.float32))
    return state


def meta_state(shapes: dict[str, list[int]], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta", dtype=dtype) for key, shape in shapes.items()}


@pytest.fixture
def small() -> dict[str, torch.Tensor]:
    """Names and shapes of the released layout in small, without values."""
    return meta_state(CASES[SMALL]["shapes"])


def full_size(side: int) -> dict[str, torch.Tensor]:
    """Names and shapes of the full-size unconditional model for that side, without values."""
    return meta_state(json.loads(gzip.decompress((DATA / f"adm_{side}x{side}_uncond_shapes.json.gz").read_bytes())))


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return full_size(256)


def skip_if_inexpressible(state: dict[str, torch.Tensor]) -> None:
    needs = "time_embedding_dim" in adm_config(state)
    if needs and "time_embedding_dim" not in signature(UNet2DModel.__init__).parameters:
        pytest.skip("a first multiplier other than 1 needs diffusers 0.32")


@pytest.mark.parametrize("name", [name for name in CASES if name != CONV])
def test_output_equals_the_original_implementation(name):
    case = CASES[name]
    state = random_state(case)
    skip_if_inexpressible(state)
    unet = load_adm_unet(state)
    x = np.random.RandomState(case["seed"] + 1).standard_normal(case["input_shape"]).astype(np.float32)
    with torch.no_grad():
        output = unet(torch.from_numpy(x), torch.tensor(case["timesteps"])).sample
    expected = torch.tensor(case["output"]).reshape(case["output_shape"])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    assert not unet.training


def test_config_of_the_released_layout(released):
    assert is_adm_state_dict(released)
    config = adm_config(released)
    assert config["sample_size"] == 256
    assert (config["in_channels"], config["out_channels"]) == (3, 6)
    assert config["block_out_channels"] == (256, 256, 512, 512, 1024, 1024)
    assert config["layers_per_block"] == 2
    assert config["down_block_types"] == ("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3
    assert config["up_block_types"] == ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3
    assert (config["downsample_type"], config["upsample_type"]) == ("resnet", "resnet")
    assert config["resnet_time_scale_shift"] == "scale_shift"
    assert config["attention_head_dim"] == 64


def test_the_released_layout_fills_the_model(released):
    unet = load_adm_unet(released)
    assert sum(p.numel() for p in unet.parameters()) == 552_814_086
    heads = {module.heads for name, module in unet.named_modules() if name.endswith("attentions.0")}
    assert heads == {512 // 64, 1024 // 64}


def test_the_512_pixel_layout_fills_the_model():
    state = full_size(512)
    config = adm_config(state)
    assert config["sample_size"] == 512
    assert config["block_out_channels"] == (128, 256, 256, 512, 512, 1024, 1024)
    assert config["time_embedding_dim"] == 1024
    skip_if_inexpressible(state)
    unet = load_adm_unet(state)
    assert sum(p.numel() for p in unet.parameters()) == 557_973_638
    assert unet.time_proj(torch.tensor([1])).shape == (1, 256)


def test_the_conv_layout_is_refused():
    """With other heads or another schedule than assumed it would compute something else, and neither is in the file."""
    with pytest.raises(AntiPureError, match="plain convolutions, as improved-diffusion's"):
        adm_config(meta_state(CASES[CONV]["shapes"]))


def test_half_precision_weights_become_float32():
    state = {key: value.half() for key, value in random_state(CASES[SMALL]).items()}
    unet = load_adm_unet(state)
    assert {p.dtype for p in unet.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "key",
    [
        "input_blocks.1.0.out_layers.3.weight",
        "input_blocks.3.0.in_layers.0.weight",
        "input_blocks.4.1.qkv.weight",
        "input_blocks.4.0.skip_connection.bias",
        "middle_block.1.norm.bias",
        "output_blocks.2.2.in_layers.0.weight",
        "out.0.bias",
    ],
)
def test_a_missing_key_is_named(small, key):
    del small[key]
    with pytest.raises(AntiPureError, match=key):
        load_adm_unet(small)


@pytest.mark.parametrize("key", ["input_blocks.1.0.in_layers.9.weight", "ema_step", "middle_block.3.in_layers.0.bias"])
def test_an_unknown_key_is_named(small, key):
    small[key] = torch.empty(1, device="meta")
    with pytest.raises(AntiPureError, match=key):
        load_adm_unet(small)


def test_a_wrong_shape_is_named(small):
    key = "middle_block.1.qkv.weight"
    small[key] = small[key][:-1]
    with pytest.raises(AntiPureError, match=key):
        convert_adm_state_dict(small, adm_config(small))


def test_missing_blocks_are_refused(small):
    for key in [key for key in small if key.startswith("output_blocks.8.")]:
        del small[key]
    with pytest.raises(AntiPureError, match="9 input and 8 output blocks"):
        adm_config(small)


def test_a_class_conditional_checkpoint_is_refused(small):
    small["label_emb.weight"] = torch.empty(1000, 128, device="meta")
    assert is_adm_state_dict(small)
    with pytest.raises(AntiPureError, match="class-conditional"):
        adm_config(small)


def test_other_layouts_are_refused():
    unet = {"conv_in.weight": torch.zeros(8, 3, 3, 3), "time_embedding.linear_1.weight": torch.zeros(32, 8)}
    assert not is_adm_state_dict(unet)
    with pytest.raises(AntiPureError, match="no ADM"):
        adm_config(unet)
