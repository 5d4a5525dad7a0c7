"""Loading denoisers: what diffusers saves loads and predicts the same; everything else is one clear sentence."""

from __future__ import annotations

import json
import pickle
import shutil
import string

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.methods.diffusion import checkpoints
from antipure.methods.diffusion.checkpoints import BUNDLED, beta_schedule, load_denoiser
from antipure.methods.diffusion.denoiser import add_noise
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import to_pixels
from diffusers import DDPMScheduler, UNet2DModel

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def tiny_unet(**changes) -> UNet2DModel:
    torch.manual_seed(3)
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "add_attention": False,
    }
    return UNet2DModel(**{**config, **changes}).eval()


@pytest.fixture
def folder(tmp_path):
    """A diffusers pipeline folder as diffusers itself writes it."""
    tiny_unet().save_pretrained(tmp_path / "model" / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def edit_json(path, **changes) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


def assert_refused(path, message: str | None = None, mentioned=None) -> None:
    """One short line naming the path."""
    with pytest.raises(AntiPureError, match=message) as raised:
        load_denoiser(path)
    text = str(raised.value)
    assert str(mentioned or path) in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 300


def assert_same_predictions(denoiser, unet: UNet2DModel) -> None:
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.no_grad():
        expected = unet(x, t).sample
        eps, variance = denoiser.predict(x, t)
    torch.testing.assert_close(eps, expected[:, :3], rtol=1e-5, atol=1e-5)
    if expected.shape[1] == 3:
        assert variance is None
    else:
        torch.testing.assert_close(variance, expected[:, 3:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["pipeline", "flat", "pickled weights"])
@pytest.mark.parametrize("channels", [3, 6])
def test_a_folder_saved_by_diffusers_predicts_as_the_model_did(tmp_path, layout, channels):
    unet = tiny_unet(out_channels=channels)
    inner, scheduler = (tmp_path, tmp_path) if layout == "flat" else (tmp_path / "unet", tmp_path / "scheduler")
    unet.save_pretrained(inner, safe_serialization=layout != "pickled weights")
    DDPMScheduler().save_pretrained(scheduler)
    denoiser = load_denoiser(tmp_path)
    assert_same_predictions(denoiser, unet)
    assert denoiser.tile == 16
    assert denoiser.multiple == 2
    assert denoiser.timesteps == 1000
    assert not denoiser.unet.training


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 2e-4, "beta_end": 0.01, "num_train_timesteps": 50},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 77},
        {"trained_betas": [0.001, 0.002, 0.01, 0.5]},
    ],
)
def test_noise_schedules_are_diffusers_schedules(folder, settings):
    scheduler = DDPMScheduler(**settings)
    scheduler.save_pretrained(folder / "scheduler")
    abar = load_denoiser(folder).alphas_cumprod
    assert abar.dtype == torch.float32
    torch.testing.assert_close(abar, scheduler.alphas_cumprod, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("settings", [{}, {"trained_betas": [0.001, 0.002]}])
def test_models_that_do_not_predict_noise_are_refused(folder, settings):
    DDPMScheduler(prediction_type="v_prediction", **settings).save_pretrained(folder / "scheduler")
    assert_refused(folder, "predicts 'v_prediction'; only epsilon")


def test_unknown_schedules_are_refused(folder):
    edit_json(folder / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid")
    assert_refused(folder, "'sigmoid' is unknown")


def test_weights_loaded_inside_inference_mode_let_gradients_through(folder):
    with torch.inference_mode():
        denoiser = load_denoiser(folder)
    assert not any(p.is_inference() or p.requires_grad for p in denoiser.unet.parameters())
    assert not denoiser.alphas_cumprod.is_inference()
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    denoiser.predict_noise(x, torch.tensor([5])).square().sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_inside_the_network(folder, precision):
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([5])
    full, half = load_denoiser(folder), load_denoiser(folder, precision=precision)
    with torch.no_grad():
        expected, actual = full.predict_noise(x, t), half.predict_noise(x, t)
    assert actual.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in half.unet.parameters())
    assert 0 < (actual - expected).norm() < 0.05 * expected.norm()


def test_unknown_precisions_are_refused(folder):
    with pytest.raises(AntiPureError, match="'int4' is unknown; choose one of fp32"):
        load_denoiser(folder, precision="int4")


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "missing"])
def test_paths_that_do_not_exist_are_refused(tmp_path, name):
    assert_refused(tmp_path / name, "There is no denoiser at")


def test_text_files_are_refused_whatever_they_begin_with(tmp_path):
    """Bytes are pickle instructions: the first letter decides how reading fails."""
    path = tmp_path / "notes.pt"
    for first in string.printable + "\x80\x81\x87":
        for rest in ("", " a text about a model\n", "0000\n", "bcdefgh"):
            path.write_bytes((first + rest).encode("latin-1"))
            assert_refused(path)
    path.write_bytes(b"")
    assert_refused(path)


def adm_like() -> dict[str, torch.Tensor]:
    return {"time_embed.0.weight": torch.randn(8, 4), "out.2.weight": torch.randn(3, 4, 3, 3)}


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pt_files_are_refused_wherever_they_end(tmp_path, zipped):
    torch.save(adm_like(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for end in [*range(1, 60, 4), *np.linspace(60, len(content) - 1, 30).astype(int)]:
        path.write_bytes(content[:end])
        assert_refused(path, "is not a complete checkpoint; download or copy it again|is no checkpoint")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pt_files_are_refused(tmp_path, zipped):
    torch.save(adm_like(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole.pt").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.pt"
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        assert_refused(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_safetensors_are_refused(tmp_path, share):
    content = BUNDLED.read_bytes()
    path = tmp_path / "denoiser.safetensors"
    path.write_bytes(content[: int(len(content) * share)])
    assert_refused(path, "is not a complete safetensors file")


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def write_payload(path, marker, kind: str) -> None:
    content = {**adm_like(), "extra": Payload(marker)} if "beside weights" in kind else Payload(marker)
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind.startswith("zip"))


KINDS = ["pickle", "legacy", "zip", "pickle beside weights", "legacy beside weights", "zip beside weights"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.bin"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path, kind, name):
    path, marker = tmp_path / name, tmp_path / "ran"
    write_payload(path, marker, kind)
    assert_refused(path, "was not loaded|read safely|not a complete checkpoint")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "legacy", "zip"])
def test_the_payload_of_these_tests_does_run_when_unpickled(tmp_path, kind):
    path, marker = tmp_path / "model.pt", tmp_path / "ran"
    write_payload(path, marker, kind)
    if kind == "pickle":
        pickle.loads(path.read_bytes()).close()
    else:
        torch.load(path, weights_only=False).close()
    assert marker.exists()


def test_code_in_the_weights_of_a_folder_is_refused_and_never_runs(folder, tmp_path):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    write_payload(folder / "unet" / "diffusion_pytorch_model.bin", tmp_path / "ran", "zip beside weights")
    assert_refused(folder, "could run code", folder / "unet" / "diffusion_pytorch_model.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [[], {}, None, "text", 3, torch.zeros(3), {1: torch.zeros(2)}, {"a": 3}, adm_like()]
)
def test_pt_files_without_an_adm_network_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    assert_refused(tmp_path / "other.pt", "ADM")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_problems_of_an_adm_network_name_the_path_too(tmp_path, suffix):
    from antipure.methods.diffusion.adm import SIGNATURE
    from safetensors.torch import save_file

    state = {key: torch.zeros(4, 4, 3, 3) for key in (*SIGNATURE, "label_emb.weight")}
    path = tmp_path / f"classes.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert_refused(path, "class-conditional")


def test_folders_without_a_network_are_refused(tmp_path):
    assert_refused(tmp_path, "has no config.json; a diffusers folder needs it for the network")


def test_folders_without_a_noise_schedule_are_refused(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert_refused(folder, "has no scheduler_config.json", folder / "scheduler")


def test_folders_without_weights_are_refused(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert_refused(folder, "has no diffusion_pytorch_model.safetensors", folder / "unet")


@pytest.mark.parametrize("text", ["{", "", "[]", "3", "null", '"unet"', "\x00\x01"])
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_broken_configurations_are_refused(folder, file, text):
    (folder / file).write_text(text)
    assert_refused(folder, "is not valid JSON|holds no settings", folder / file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel"),
        ({"in_channels": 4}, "takes 4 channels"),
        ({"block_out_channels": [16, 16]}, "its configuration describes"),
        ({"layers_per_block": 2}, "its configuration describes"),
        ({"down_block_types": ["NoSuchBlock", "DownBlock2D"]}, "its configuration describes"),
        ({"norm_num_groups": 0}, "its configuration describes"),
        ({"block_out_channels": "wide"}, "its configuration describes"),
        ({"block_out_channels": []}, "its configuration describes"),
        ({"no_such_setting": 1}, "its configuration describes"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(folder, changes, message):
    edit_json(folder / "unet" / "config.json", **changes)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    "changes", [{"num_train_timesteps": "many"}, {"beta_start": None}, {"num_train_timesteps": -5}]
)
def test_noise_schedules_that_make_no_sense_are_refused(folder, changes):
    edit_json(folder / "scheduler" / "scheduler_config.json", **changes)
    assert_refused(folder, "cannot be read as a denoiser|timesteps; whole numbers up to")


def test_class_conditional_models_are_refused(folder):
    tiny_unet(num_class_embeds=4).save_pretrained(folder / "unet")
    assert_refused(folder, "class-conditional", folder / "unet")


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_latent_models_are_refused(folder, name):
    """Some have three latent channels, and would pass for pixel models."""
    (folder / name).mkdir()
    assert_refused(folder, "latent diffusion model")


@pytest.mark.parametrize("config", [None, "{", "{}", "[]", '{"unet": {"layers_per_block": "two"}, "scheduler": {}}'])
def test_files_of_our_format_with_a_broken_configuration_are_refused(tmp_path, config):
    from safetensors.torch import save_file

    metadata = {"format": checkpoints.OWN_FORMAT, **({} if config is None else {"config": config})}
    save_file({"a": torch.zeros(2)}, tmp_path / "own.safetensors", metadata=metadata)
    assert_refused(tmp_path / "own.safetensors")


@pytest.mark.parametrize("name", ["bundled", "held_out"])
def test_what_the_training_tool_saves_loads_as_the_same_network_in_fp16_steps(tmp_path, tool, name):
    train = tool("train_denoiser")
    torch.manual_seed(0)
    unet = UNet2DModel(**train.NETWORKS[name]).eval()
    path = tmp_path / "denoiser.safetensors"
    train.save(path, train.NETWORKS[name], unet.state_dict(), {"seed": 0})
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no partial file stays behind"
    denoiser = load_denoiser(path)
    for key, value in denoiser.unet.state_dict().items():
        assert torch.equal(value, unet.state_dict()[key].half().float())
    assert (denoiser.tile, denoiser.patch, denoiser.multiple, denoiser.timesteps) == (64, 2, 8, 1000)
    torch.testing.assert_close(denoiser.alphas_cumprod, DDPMScheduler().alphas_cumprod, rtol=2e-5, atol=0)
    x, t = torch.randn(2, 3, 16, 24), torch.tensor([3, 500])
    with torch.no_grad():
        eps, variance = denoiser.predict(x, t)
        expected = F.pixel_shuffle(unet(F.pixel_unshuffle(x, 2), t).sample, 2)
    assert variance is None
    assert (eps - expected).norm() < 0.01 * expected.norm()


def test_the_bundled_denoiser_is_small_and_made_for_64_pixels():
    assert BUNDLED.stat().st_size <= 4 * 2**20
    denoiser = load_denoiser()
    assert sum(p.numel() for p in denoiser.unet.parameters()) <= 1.5e6
    assert (denoiser.tile, denoiser.timesteps) == (64, 1000)
    assert denoiser.tile % denoiser.multiple == 0


@pytest.mark.parametrize(("t", "bound"), [(29, 0.25), (99, 0.1)])
def test_the_bundled_denoiser_finds_the_noise_in_a_photo_it_never_saw(face, t, bound):
    """Mean square error of eps_theta; predicting nothing gives 1."""
    denoiser = load_denoiser()
    eps = torch.randn(face.shape, generator=torch.Generator().manual_seed(0))
    abar = denoiser.alphas_cumprod[t].view(1)
    with torch.no_grad():
        predicted = denoiser.predict_noise(add_noise(to_pixels(face), eps, abar), torch.tensor([t]))
    assert (predicted - eps).square().mean().item() < bound


def test_beta_schedules_are_in_float64():
    assert beta_schedule({}).dtype == torch.float64
    assert beta_schedule({"trained_betas": [0.1]}).dtype == torch.float64


def test_the_bundled_denoisers_have_names(tmp_path, monkeypatch):
    stand_in = tmp_path / "held_out_denoiser.safetensors"
    shutil.copy(checkpoints.BUNDLED, stand_in)
    monkeypatch.setattr(checkpoints, "BUNDLED_HELD_OUT", stand_in)
    assert load_denoiser().name == "bundled"
    assert load_denoiser(checkpoints.BUNDLED_JUDGE).name == "bundled_judge"
    assert load_denoiser(stand_in).name == "bundled_held_out"
    shutil.copy(stand_in, tmp_path / "other.safetensors")
    assert load_denoiser(tmp_path / "other.safetensors").name == "other.safetensors"
    stand_in.unlink()
    with pytest.raises(AntiPureError, match="lacks its own file bundled/held_out_denoiser.safetensors"):
        load_denoiser(stand_in)
