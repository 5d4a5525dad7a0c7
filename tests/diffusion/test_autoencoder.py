"""VAEs from files: against diffusers' own classes, against TAESD's published layout told slowly, and real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from antipure.benchmarks import strangers
from antipure.methods.diffusion import autoencoder
from antipure.methods.diffusion.autoencoder import ENCODER_FORMAT, load_autoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.image import psnr
from antipure.methods.pictures import to_picture, to_pixels
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent


def pixels(height: int = 32, width: int = 40, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def kl(seed: int = 0, **changes) -> AutoencoderKL:
    torch.manual_seed(seed)
    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**{**settings, **changes}).eval()


def tiny(channels: int = 4, seed: int = 0) -> AutoencoderTiny:
    torch.manual_seed(seed)
    return AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
    ).eval()


def published(vae: AutoencoderTiny) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dicts of a network in the layout of taesd_encoder.pth and taesd_decoder.pth."""
    encoder = {key.removeprefix("layers."): value for key, value in vae.encoder.state_dict().items()}
    decoder = {}
    for key, value in vae.decoder.state_dict().items():
        _, index, rest = key.split(".", 2)
        decoder[f"{int(index) + 1}.{rest}"] = value
    return encoder, decoder


def write_pair(folder: Path, encoder: dict, decoder: dict, name: str = "taesd") -> tuple[Path, Path]:
    paths = folder / f"{name}_encoder.pth", folder / f"{name}_decoder.pth"
    for path, state in zip(paths, (encoder, decoder), strict=True):
        torch.save(state, path)
    return paths


def save_folder(vae, folder: Path) -> Path:
    vae.save_pretrained(folder)
    return folder


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == torch.float32 and a.shape == b.shape and bool((a - b).norm() < 1e-5 * b.norm())


# Against diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant_conv", [True, False], ids=["with quant_conv", "without"])
def test_a_kl_folder_is_what_diffusers_makes_of_it(tmp_path, quant_conv):
    vae = kl(use_quant_conv=quant_conv, use_post_quant_conv=quant_conv, latent_channels=6)
    loaded = load_autoencoder(save_folder(vae, tmp_path / "mine"))
    assert (loaded.name, loaded.multiple, loaded.channels) == ("mine", 4, 6)
    x = pixels()
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        mean, log_variance = loaded.moments(x)
        assert same(loaded.encode(x), posterior.mode())
        assert same(mean, posterior.mean)
        assert same(log_variance, posterior.logvar)
        assert same(loaded.decode(mean), vae.decode(posterior.mean).sample)


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("layout", ["folder", "one file", "fp8 file", "pair", "pair by its encoder", "by its decoder"])
def test_every_layout_of_a_tiny_one_is_what_diffusers_makes_of_it(tmp_path, channels, layout):
    vae = tiny(channels)
    if layout == "fp8 file":  # strangers' files: fp8 weights, fp32 biases
        for name, value in vae.state_dict().items():
            if name.endswith("weight"):
                value.copy_(value.to(torch.float8_e4m3fn).float())
        state = {
            key: value.to(torch.float8_e4m3fn) if key.endswith("weight") else value
            for key, value in vae.state_dict().items()
        }
        assert torch.float8_e4m3fn in {value.dtype for value in state.values()}
    else:
        state = dict(vae.state_dict())
    if layout == "folder":
        path = save_folder(vae, tmp_path / "tiny")
    elif layout.endswith("file"):
        path = tmp_path / "tiny.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        both = write_pair(tmp_path, *published(vae), name="tiny")
        path = both if layout == "pair" else both["decoder" in layout]
    loaded = load_autoencoder(path)
    assert (loaded.name, loaded.multiple, loaded.channels) == ("tiny", 8, channels)
    x = pixels()
    with torch.no_grad():
        latent = vae.encode(x).latents
        assert same(loaded.encode(x), latent)
        assert same(loaded.decode(3 * latent), vae.decode(3 * latent).sample)
    assert loaded.moments(x)[1] is None


def test_old_names_of_attention_are_understood(tmp_path):
    """As the VAE of Stable Diffusion 1.5 was published."""
    vae = kl()
    folder = save_folder(vae, tmp_path / "old")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in vae.state_dict().items():
        for now, before in old.items():
            key = key.replace(f".{now}.", f".{before}.")
        state[key] = value.contiguous()
    assert any(".proj_attn." in key for key in state)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    with torch.no_grad():
        assert same(load_autoencoder(folder).encode(pixels()), vae.encode(pixels()).latent_dist.mean)


def test_a_pipeline_gives_its_vae(tmp_path):
    save_folder(kl(), tmp_path / "pipeline" / "vae")
    assert load_autoencoder(tmp_path / "pipeline").name == "pipeline"
    assert load_autoencoder(tmp_path / "pipeline" / "vae").name == "pipeline"


# FLUX.2's layout, told slowly ------------------------------------------------------------------------------------


def flux2_states(width: int = 16, channels: int = 32, seed: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights in the layout of taef2_encoder.pth and taef2_decoder.pth, but narrower."""
    generator = torch.Generator().manual_seed(seed)

    def convolution(state: dict, name: str, outputs: int, inputs: int, side: int = 3, bias: bool = True) -> None:
        shape = (outputs, inputs, side, side)
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * 1.4 / (inputs * side**2) ** 0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(outputs, generator=generator) / 10

    def block(state: dict, name: int, pooled: bool) -> None:
        for i in (0, 2, 4):
            convolution(state, f"{name}.conv.{i}", width, width)
        if pooled:
            convolution(state, f"{name}.pool.0", 4 * width, width, 1, bias=False)
            convolution(state, f"{name}.pool.3", width, 4 * width, 1, bias=False)
            state[f"{name}.pool.1.weight"] = torch.rand(4 * width, generator=generator)
            state[f"{name}.pool.1.bias"] = torch.rand(4 * width, generator=generator)

    encoder: dict[str, Tensor] = {}
    convolution(encoder, "0", width, 3)
    for name in (2, 6, 10):
        convolution(encoder, str(name), width, width, bias=False)
    for name in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        block(encoder, name, pooled=name > 10)
    convolution(encoder, "14", channels, width)
    decoder: dict[str, Tensor] = {}
    convolution(decoder, "1", width, channels)
    for name in (7, 12, 17):
        convolution(decoder, str(name), width, width, bias=False)
    for name in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        block(decoder, name, pooled=name < 6)
    convolution(decoder, "19", 3, width)
    return encoder, decoder


def slowly(state: dict[str, Tensor], x: Tensor, steps: str) -> Tensor:
    """The layers of a published file: c(onvolution), s(trided), b(lock), u(psampling), r(elu) and t(anh)."""
    for i, step in enumerate(steps):
        weight = {name: state.get(f"{i}.{name}") for name in ("weight", "bias")}
        if step == "t":
            x = torch.tanh(x / 3) * 3
        elif step == "r":
            x = x.clamp(min=0)
        elif step == "u":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        elif step in "cs":
            x = F.conv2d(x, weight["weight"], weight["bias"], stride=2 if step == "s" else 1, padding=1)
        else:
            if f"{i}.pool.0.weight" in state:
                wide = torch.einsum("oi,bihw->bohw", state[f"{i}.pool.0.weight"][..., 0, 0], x)
                parts = wide.unflatten(1, (4, -1))
                mean = parts.mean((2, 3, 4), keepdim=True)
                variance = (parts - mean).square().mean((2, 3, 4), keepdim=True)
                wide = ((parts - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
                wide = wide * state[f"{i}.pool.1.weight"].view(1, -1, 1, 1) + state[f"{i}.pool.1.bias"].view(
                    1, -1, 1, 1
                )
                x = x + torch.einsum("oi,bihw->bohw", state[f"{i}.pool.3.weight"][..., 0, 0], wide.clamp(min=0))
            y = x
            for j in (0, 2, 4):
                y = F.conv2d(y.clamp(min=0) if j else y, *(state[f"{i}.conv.{j}.{n}"] for n in weight), padding=1)
            x = (x + y).clamp(min=0)
    return x


def test_the_layout_of_flux2(tmp_path):
    encoder, decoder = flux2_states()
    loaded = load_autoencoder(write_pair(tmp_path, encoder, decoder, "taef2"))
    assert (loaded.name, loaded.multiple, loaded.channels) == ("taef2", 8, 32)
    x = pixels()
    with torch.no_grad():
        latent = slowly(encoder, (x + 1) / 2, "cbsbbbsbbbsbbbc")
        assert same(loaded.encode(x), latent)
        assert same(loaded.decode(latent), 2 * slowly(decoder, latent, "tcrbbbucbbbucbbbucbc") - 1)


# The interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_the_gradient_reaches_the_pixels_and_no_weight(tmp_path, kind):
    vae = kl() if kind == "kl" else tiny()
    folder = save_folder(vae, tmp_path / kind)
    with torch.inference_mode():
        loaded = load_autoencoder(folder)
    x = pixels(16, 16, 1).double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loaded.network.double()
    network = loaded.network
    leaf = x.clone().requires_grad_()
    network.decode(network.moments(leaf)[0]).square().mean().backward()
    with torch.no_grad():
        up, down = (network.decode(network.moments(x + s * 1e-6 * direction)[0]).square().mean() for s in (1, -1))
    assert torch.allclose((leaf.grad * direction).sum(), (up - down) / 2e-6, rtol=1e-4)
    assert all(p.grad is None and not p.requires_grad and not p.is_inference() for p in network.parameters())
    network.float()
    single = pixels(16, 16, 1).requires_grad_()
    loaded.decode(loaded.encode(single)).square().mean().backward()
    assert (single.grad - leaf.grad).norm() < 1e-3 * leaf.grad.norm()


def test_odd_sizes_are_mirrored_up_or_refused(tmp_path):
    loaded = load_autoencoder(save_folder(kl(), tmp_path / "kl"))
    x = pixels(9, 6)
    grown = torch.cat([x, x[..., 5:8, :].flip(2)], 2)  # 9 to 12 rows and 6 to 8 columns, without repeating the border
    grown = torch.cat([grown, grown[..., 3:5].flip(3)], 3)
    with torch.no_grad():
        assert torch.equal(loaded.encode_padded(x), loaded.encode(grown))
        assert torch.equal(loaded.encode_padded(grown), loaded.encode(grown))
    with pytest.raises(AntiPureError, match="9×6 pixels; the sides that kl encodes are multiples of 4"):
        loaded.encode(x)
    with pytest.raises(AntiPureError, match="shape"):
        loaded.decode(torch.zeros(1, 3, 2, 2))


def test_a_session_tells_how_many_pictures_fit(tmp_path):
    loaded = load_autoencoder(save_folder(kl(), tmp_path / "kl"))
    loaded.memory_bytes = 3.5 * loaded.bytes_per_pixel() * 64 * 64
    with loaded.session() as batching:
        assert loaded.batching is batching
        assert [part.stop - part.start for part in batching.batches(7, 64, 64)] == [3, 3, 1]
        assert batching.shrink()
    with loaded.session() as again:
        assert again.limit is None, "what one session learned of memory is forgotten with it"


# Refusals --------------------------------------------------------------------------------------------------------


def edited(folder: Path, **changes) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


FOLDERS = {
    "holds a AutoencoderKLWan": {"_class_name": "AutoencoderKLWan"},
    "network without a name": {"_class_name": None},
    "takes 1 channels and gives 3": {"in_channels": 1},
    "no picture comes back at its own size": {"_class_name": "AutoencoderTiny", "upsampling_scaling_factor": 3},
    "does not describe an AutoencoderKL": {"block_out_channels": "wide"},
    "asks for 100000 levels": {"block_out_channels": [8] * 100_000},
    "more than 1000 layers": {"layers_per_block": 10**9},
    "far more than its files can hold": {"block_out_channels": [8192, 8192, 8192], "norm_num_groups": 1},
    "has shape": {"block_out_channels": [8, 8, 8]},
}


@pytest.mark.parametrize("sentence", FOLDERS)
def test_folders_of_something_else_are_one_sentence(tmp_path, sentence):
    changes = FOLDERS[sentence]
    vae = tiny() if changes.get("_class_name") == "AutoencoderTiny" else kl()
    folder = edited(save_folder(vae, tmp_path / "vae"), **changes)
    with pytest.raises(AntiPureError, match=sentence) as caught:
        load_autoencoder(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def broken_pair(tmp_path: Path, change) -> tuple[Path, Path]:
    encoder, decoder = published(tiny())
    change(encoder, decoder)
    return write_pair(tmp_path, encoder, decoder)


PAIRS = {
    "It is incomplete: it has no 'encoder.3.conv.0.bias'": lambda e, d: e.pop("3.conv.0.bias"),
    "'decoder.7.weight' has shape": lambda e, d: d.update({"7.weight": torch.zeros(16, 16, 1, 1)}),
    "'decoder.19.bias' holds NaN": lambda e, d: d.update({"19.bias": torch.full((3,), float("nan"))}),
    "'encoder.99.weight', which has no place": lambda e, d: e.update({"99.weight": torch.zeros(1)}),
    "makes 7 latent channels and the decoder takes 4": lambda e, d: e.update({"14.weight": torch.zeros(7, 16, 3, 3)}),
    "not those of a TAESD": lambda e, d: d.pop("1.weight"),
    "makes 0 latent channels": lambda e, d: e.pop("14.weight"),
}


@pytest.mark.parametrize("sentence", PAIRS)
def test_halves_that_do_not_fit_are_one_sentence(tmp_path, sentence):
    pair = broken_pair(tmp_path, PAIRS[sentence])
    with pytest.raises(AntiPureError, match=sentence) as caught:
        load_autoencoder(pair)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_order_of_a_pair_does_not_matter(tmp_path):
    pair = write_pair(tmp_path, *published(tiny()))
    with torch.no_grad():
        assert torch.equal(load_autoencoder(pair).encode(pixels()), load_autoencoder(pair[::-1]).encode(pixels()))


def test_files_of_something_else_are_one_sentence(tmp_path):
    encoder, _ = published(tiny())
    torch.save(encoder, tmp_path / "alone_encoder.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "code.pth").write_bytes(b"\x80\x04cos\nsystem\n.")
    (tmp_path / "empty").mkdir()
    state = {key: value.contiguous() for key, value in tiny().state_dict().items()}
    save_file({**state, "quant_conv.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    cases = {
        "alone_encoder.pth": "an encoder alone; put the other half beside it",
        "other.pth": "those of another network",
        "code.pth": "read safely|complete checkpoint",
        "empty": "has no config.json",
        "more.safetensors": "it has 'quant_conv.weight'",
        "gone.pth": "There is no VAE at",
    }
    for name, sentence in cases.items():
        with pytest.raises(AntiPureError, match=sentence) as caught:
            load_autoencoder(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(AntiPureError, match="3 files are no VAE"):
        load_autoencoder([tmp_path] * 3)


def write_encoder(path: Path, vae: AutoencoderTiny, **more: Tensor) -> Path:
    encoder = {key: value.contiguous() for key, value in published(vae)[0].items()}
    save_file(encoder | more, path, metadata={"format": ENCODER_FORMAT})
    return path


@pytest.mark.parametrize("channels", [4, 16])
def test_an_encoder_that_is_meant_to_be_alone_encodes_as_diffusers_does(tmp_path, channels):
    theirs = tiny(channels)
    ours = load_autoencoder(write_encoder(tmp_path / "mine.safetensors", theirs))
    with torch.no_grad():
        expected = theirs.encode(pixels()).latents
        torch.testing.assert_close(ours.encode(pixels()), expected, rtol=1e-4, atol=1e-5)
    assert (ours.name, ours.multiple, ours.channels, ours.decodes) == ("mine", 8, channels, False)
    with pytest.raises(AntiPureError, match="an encoder alone and cannot decode; give a whole VAE"):
        ours.decode(expected)
    assert 0 < ours.bytes_per_pixel() < load_autoencoder(write_pair(tmp_path, *published(theirs))).bytes_per_pixel()


def test_a_broken_encoder_alone_is_one_sentence(tmp_path):
    cases = {
        "'encoder.99.weight', which has no place": {"99.weight": torch.zeros(1)},
        "'encoder.1.conv.0.weight' has shape": {"1.conv.0.weight": torch.zeros(16, 16, 1, 1)},
        "does not begin with an encoder's first layer": {"0.weight": torch.zeros(16)},
        "'encoder.0.bias' holds NaN": {"0.bias": torch.full((16,), float("nan"))},
    }
    for sentence, change in cases.items():
        path = write_encoder(tmp_path / "mine.safetensors", tiny(), **change)
        with pytest.raises(AntiPureError, match=sentence) as caught:
            load_autoencoder(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_a_missing_file_of_our_own_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(autoencoder, "BUNDLED_VAE", tmp_path / "vae_encoder.safetensors")
    with pytest.raises(
        AntiPureError, match="lacks its own file bundled/vae_encoder.safetensors; install the pack again"
    ):
        load_autoencoder(autoencoder.BUNDLED_VAE)


# Real ones -------------------------------------------------------------------------------------------------------

ROUND_TRIPS = {
    "sd15": 25.3,
    "sdxl": 25.2,
    "sd3": 29.7,
    "flux1": 26.7,
    "flux2": 31.6,
}  # dB, as their files were measured


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_real_files_bring_the_astronaut_back(name):
    found = strangers.vae_files()
    if name not in found:
        pytest.skip(strangers.missing())
    loaded = load_autoencoder(found[name], name=name)
    with Image.open(ROOT / "bundled" / "astronaut.png") as file:
        picture = torch.tensor(list(file.convert("RGB").tobytes())).view(file.height, file.width, 3)
    picture = picture.permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        back = to_picture(loaded.decode(loaded.encode(to_pixels(picture))))
    assert abs(float(psnr(picture, back)) - ROUND_TRIPS[name]) < 0.06
