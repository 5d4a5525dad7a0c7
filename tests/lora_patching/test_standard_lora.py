"""Standard LoRA files in the hands of others: diffusers' own loaders on small random networks, outputs compared."""

from __future__ import annotations

import logging

import pytest
import torch
from antipure.methods.architecture import fingerprint
from antipure.methods.errors import AntiPureError
from antipure.methods.lora_patching.low_rank import PatchConfig
from antipure.methods.lora_patching.patch import LoraPatch, new_patch, patchable_layers, patched
from antipure.methods.lora_patching.standard_lora import kohya_name, standard_lora
from safetensors.torch import load_file, save_file
from torch import nn

SHAPE = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
KINDS = {
    "SD 1": {},
    "SD 2": {"use_linear_projection": True},
    "SDXL": {
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
        "transformer_layers_per_block": (2, 1),
    },
}


def unet_of(kind):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**SHAPE, **BLOCKS, **KINDS[kind]).eval()


def random_patch(network, config):
    applied = new_patch(network, config)
    stream = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(value.shape, generator=stream) / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else value
        for name, value in applied.tensors().items()
    }
    applied.remove()
    return LoraPatch(config, tensors, fingerprint(network), {})


def output(unet):
    stream = torch.Generator().manual_seed(1)
    latent, text = torch.randn(1, 4, 8, 8, generator=stream), torch.randn(1, 5, 8, generator=stream)
    added = {"text_embeds": torch.randn(1, 8, generator=stream), "time_ids": torch.arange(6.0)[None]}
    with torch.no_grad():
        return unet(latent, torch.tensor([40]), text, added_cond_kwargs=added).sample


@pytest.fixture
def reading():
    """Versions that came before these rules drop the time embedding's layers."""
    from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key as read

    if read("lora_unet_time_embedding_linear_1.lora_down.weight") != "time_embedding.linear_1.lora.down.weight":
        pytest.skip("this diffusers does not read time embeddings from kohya's keys")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", ["scalar", "none"])
def test_diffusers_loads_every_layer_to_the_same_output(kind, gate, tmp_path, caplog, reading):
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    unet = unet_of(kind)
    patch = random_patch(unet, PatchConfig(3, gate=gate))
    plain = output(unet)
    with patched(unet, patch, 0.7):
        expected = output(unet)
    lora = standard_lora(unet, patch, 0.7, name=kohya_name)
    assert len(lora) == 3 * len(patchable_layers(unet))
    assert all(key.startswith("lora_unet_") for key in lora)
    file = tmp_path / "lora.safetensors"
    save_file(lora, file)
    with caplog.at_level(logging.WARNING):
        state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            str(tmp_path), weight_name=file.name, unet_config=unet.config
        )
        StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    taken = sum(hasattr(module, "lora_A") for module in unet.modules())
    assert taken * 3 == len(load_file(file))
    assert "no lora keys" not in caplog.text.lower()
    assert "unexpected" not in caplog.text.lower()
    loaded = output(unet)
    assert (expected - plain).abs().max() > 0.05
    torch.testing.assert_close(loaded, expected, atol=2e-5, rtol=1e-4)


def test_diffusers_reads_the_embeddings_by_their_original_names_too(reading):
    """As they are called in a file of ComfyUI's network, whose other layers have diffusers' names."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    unet = unet_of("SDXL")
    patch = random_patch(unet, PatchConfig(3))
    with patched(unet, patch):
        expected = output(unet)
    known = {f"time_embedding.linear_{i + 1}": f"lora_unet_time_embed_{2 * i}" for i in range(2)}
    lora = standard_lora(unet, patch, name=lambda layer: kohya_name(layer, known))
    assert {"lora_unet_time_embed_0.alpha", "lora_unet_label_emb_0_2.alpha"} <= set(lora)
    state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(lora), unet_config=unet.config)
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    torch.testing.assert_close(output(unet), expected, atol=2e-5, rtol=1e-4)


def test_a_whole_pipeline_loads_the_file(tmp_path, reading):
    """`load_lora_weights`, as everybody calls it."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = unet_of("SD 1")
    patch = random_patch(unet, PatchConfig(3))
    with patched(unet, patch):
        expected = output(unet)
    save_file(standard_lora(unet, patch, name=kohya_name), tmp_path / "lora.safetensors")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=5,
        )  # fmt: skip
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)), text_encoder=text, tokenizer=None, unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    torch.testing.assert_close(output(pipeline.unet), expected, atol=2e-5, rtol=1e-4)


def test_names_from_the_hosts_key_map_come_first():
    known = {"input_blocks.1.0.in_layers.2": "lora_unet_down_blocks_0_resnets_0_conv1"}
    assert kohya_name("input_blocks.1.0.in_layers.2", known) == "lora_unet_down_blocks_0_resnets_0_conv1"
    assert kohya_name("time_embed.0", known) == "lora_unet_time_embed_0"
    assert kohya_name("double_blocks.0.img_attn.qkv") == "lora_unet_double_blocks_0_img_attn_qkv"


def test_two_layers_of_one_name_are_refused():
    network = nn.ModuleDict({"a_b": nn.Linear(2, 2), "a": nn.ModuleDict({"b": nn.Linear(2, 2)})})
    patch = random_patch(network, PatchConfig(1))
    with pytest.raises(AntiPureError, match="Two layers would be called lora_unet_a_b"):
        standard_lora(network, patch, name=kohya_name)
    assert len(standard_lora(network, patch)) == 6
