"""Models of other families, layouts and years: loaded exactly, or refused; and files that ask for too much."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from antipure.methods.diffusion import checkpoints
from antipure.methods.diffusion.adm import load_adm_unet
from antipure.methods.diffusion.checkpoints import SCHEDULERS, beta_schedule, load_denoiser
from antipure.methods.errors import AntiPureError
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # old schedulers, new numpy

WEIGHTS = "diffusion_pytorch_model"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
ADM = json.loads((Path(__file__).resolve().parents[1] / "data" / "adm_reference.json").read_text())["cases"]
ATTENTION = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "add_attention": True,
}


def tiny_unet(**changes) -> UNet2DModel:
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    layers = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DModel(**{"sample_size": 16, **layers, **blocks, **changes}).eval()


def adm_state(case: str) -> dict[str, torch.Tensor]:
    rng = np.random.RandomState(0)
    shapes = ADM[case]["shapes"]
    return {key: torch.from_numpy(rng.uniform(-0.1, 0.1, shapes[key]).astype(np.float32)) for key in shapes}


@pytest.fixture
def folder(tmp_path):
    """A diffusers pipeline folder as diffusers itself writes it."""
    tiny_unet().save_pretrained(tmp_path / "model" / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_refused(path, message: str) -> None:
    """One short line naming the path."""
    with pytest.raises(AntiPureError, match=message) as raised:
        load_denoiser(path)
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 2 * len(str(path)) + 300


def assert_same_predictions(path, unet: UNet2DModel) -> None:
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(load_denoiser(path).predict_noise(x, t), unet(x, t).sample, rtol=1e-5, atol=1e-5)


@pytest.fixture
def edit_scheduler(folder):
    def edit(**changes):
        edit_json(folder / "scheduler" / "scheduler_config.json", **changes)
        return folder

    return edit


# Schedulers.


@pytest.mark.parametrize(
    "name",
    ["ScoreSdeVeScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"]
    + ["CMStochasticIterativeScheduler", "LCMScheduler", "VQDiffusionScheduler", "UnCLIPScheduler", "Mine", None, 3],
)
def test_schedulers_of_another_family_are_refused_by_name(edit_scheduler, name):
    assert_refused(edit_scheduler(_class_name=name), f"Its scheduler is a {name}, whose noise is not that of DDPM")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_the_family_have_the_noise_of_ddpm(folder, name):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    settings = {"beta_start": 0.0002, "beta_end": 0.01, "beta_schedule": "linear"}
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.save_pretrained(folder / "scheduler")
    abar = load_denoiser(folder).alphas_cumprod
    torch.testing.assert_close(abar, scheduler.alphas_cumprod, rtol=2e-5, atol=2e-7)
    torch.testing.assert_close(abar, DDPMScheduler(**settings).alphas_cumprod, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"use_flow_sigmas": True}, "flow matching"),
        ({"prediction_type": "sample"}, "predicts 'sample'; only epsilon"),
        ({"prediction_type": "flow_prediction"}, "predicts 'flow_prediction'; only epsilon"),
        ({"beta_start": 0.0}, "between 0 and 1"),
        ({"beta_end": 1.5}, "between 0 and 1"),
        ({"beta_start": -0.1}, "between 0 and 1"),
        ({"beta_end": float("nan")}, "between 0 and 1"),
        ({"beta_end": float("inf")}, "between 0 and 1"),
        ({"trained_betas": []}, "between 0 and 1"),
        ({"trained_betas": [[0.1, 0.2]]}, "between 0 and 1"),
        ({"trained_betas": [0.1, 1.0]}, "between 0 and 1"),
        ({"trained_betas": [0.1, float("nan")]}, "between 0 and 1"),
        ({"trained_betas": [0.9] * 1000}, "nothing of the picture is left"),
        ({"num_train_timesteps": 0}, "has 0 timesteps"),
        ({"num_train_timesteps": 10**12}, "has 1000000000000 timesteps"),
        ({"num_train_timesteps": 1000.5}, "timesteps"),
        ({"num_train_timesteps": True}, "timesteps"),
    ],
)
def test_schedules_that_are_none_are_refused(edit_scheduler, changes, message):
    assert_refused(edit_scheduler(**changes), message)


def test_a_flag_that_is_off_changes_nothing(edit_scheduler):
    load_denoiser(edit_scheduler(rescale_betas_zero_snr=False, use_flow_sigmas=False))


def test_4000_cosine_steps_are_kept_from_a_folder(edit_scheduler):
    scheduler = DDPMScheduler(num_train_timesteps=4000, beta_schedule="squaredcos_cap_v2")
    denoiser = load_denoiser(edit_scheduler(num_train_timesteps=4000, beta_schedule="squaredcos_cap_v2"))
    torch.testing.assert_close(denoiser.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


# Networks that are not what they seem.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["folder", "adm", "strided"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, folder, value, kind):
    path = tmp_path / "bad.safetensors"
    if kind == "folder":
        path = folder / "unet" / f"{WEIGHTS}.safetensors"
        state, metadata, key = load_file(path), None, "conv_out.bias"
    elif kind == "adm":
        state, metadata, key = adm_state("released layout in small"), None, "out.2.bias"
    else:
        state, metadata = checkpoints.read_weights(checkpoints.BUNDLED_JUDGE, "")
        key = "tail.bias"
    state[key][0] = value
    save_file(state, path, metadata=metadata)
    assert_refused(
        folder if kind == "folder" else path, "'(conv_out|tail).bias' holds NaN or infinite weights",
    )  # fmt: skip


@pytest.mark.parametrize("form", ["pt", "safetensors", "ema"])
def test_improved_diffusion_is_refused_since_heads_and_schedule_leave_no_trace(tmp_path, form):
    state = adm_state("conv sampling, no scale-shift, one head")
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "ema_0.9999_050000.pt")
    save_file(state, path) if form == "safetensors" else torch.save({"ema": state} if form == "ema" else state, path)
    assert_refused(path, "plain convolutions, as improved-diffusion's .* convert it to a diffusers folder")


@pytest.mark.parametrize("size", [0, -64, 10**9, 16.5, True, "64"])
def test_absurd_sizes_are_refused(folder, size):
    edit_json(folder / "unet" / "config.json", sample_size=size)
    assert_refused(folder, "Its size is .*, which is no number of pixels")


@pytest.mark.parametrize("size", [None, [16, 24], 16])
def test_no_size_and_two_sizes_load_as_before(folder, size):
    edit_json(folder / "unet" / "config.json", sample_size=size)
    assert load_denoiser(folder).tile == (16 if size == 16 else None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 0}, "Its size is 0"),
        ({"tile": 10**7}, "Its size is 10000000"),
        ({"tile": "64"}, "Its size is '64'"),
        ({"patch": 0}, "Its patch is 0"),
        ({"patch": 1.0}, "Its patch is 1.0"),
        ({"patch": 10**9}, "Its patch is 1000000000"),
        ({"patch": 1}, "maps 12 channels to 12; .* maps 3"),
        ({"patch": 4}, "maps 12 channels to 12; .* maps 48"),
    ],
)
def test_tiles_and_patches_of_our_format_are_checked(tmp_path, changes, message):
    state, metadata = checkpoints.read_weights(checkpoints.BUNDLED, "")
    config = json.dumps({**json.loads(metadata["config"]), **changes})
    save_file(state, tmp_path / "own.safetensors", metadata={**metadata, "config": config})
    assert_refused(tmp_path / "own.safetensors", message)


@pytest.mark.parametrize("out", [1, 4, 5, 7])
def test_outputs_that_are_neither_noise_nor_noise_and_variance_are_refused(folder, out):
    tiny_unet(out_channels=out).save_pretrained(folder / "unet")
    assert_refused(folder, f"maps 3 channels to {out}")


# Layouts of other years.


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_attention_under_the_names_of_diffusers_first_year_is_read(folder, form):
    unet = tiny_unet(**ATTENTION)
    unet.save_pretrained(folder / "unet")
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    state, changed = {}, 0
    for key, value in load_file(path).items():
        for new, old in OLD_NAMES.items():
            changed += f".{new}." in key
            key = key.replace(f".{new}.", f".{old}.")
        state[key] = value
    assert changed >= 3 * 4 * 2, "attention on the way down, in the middle and on the way up"
    path.unlink()
    save_file(state, path) if form == "safetensors" else torch.save(state, path.with_suffix(".bin"))
    assert_same_predictions(folder, unet)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("form", ["variant", "shards", "shards of a variant"])
def test_variants_and_shards_as_diffusers_writes_them_are_read(folder, form, safe):
    unet = tiny_unet(**ATTENTION)
    for old in (folder / "unet").iterdir():
        old.unlink()
    settings = {"variant": "fp16"} if "variant" in form else {}
    unet.half().save_pretrained(
        folder / "unet", safe_serialization=safe, max_shard_size="10KB" if "shards" in form else "1GB", **settings
    )
    names = [path.name for path in (folder / "unet").iterdir()]
    assert f"{WEIGHTS}.safetensors" not in names
    assert len(names) > 4 if "shards" in form else len(names) == 2
    assert_same_predictions(folder, unet.float())


def test_a_missing_shard_is_named(folder):
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    tiny_unet().save_pretrained(folder / "unet", max_shard_size="10KB")
    shard = next((folder / "unet").glob("*-00002-of-*"))
    shard.unlink()
    assert_refused(folder, f"lacks {shard.name}")


def test_a_missing_weight_is_named(folder):
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(path)
    del state["conv_in.bias"]
    save_file(state, path)
    assert_refused(folder, "has no 'conv_in.bias'")


@pytest.mark.parametrize("wrapped", ["state_dict", "ema", "module."])
def test_wrapped_adm_checkpoints_are_the_network_inside(tmp_path, wrapped):
    state = adm_state("released layout in small")
    content = {f"module.{k}": v for k, v in state.items()} if wrapped == "module." else {wrapped: state, "step": 5}
    torch.save(content, tmp_path / "adm.pt")
    found, expected = load_denoiser(tmp_path / "adm.pt").unet.state_dict(), load_adm_unet(state).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# What a configuration may ask for.


@pytest.mark.parametrize(
    "changes",
    [{"block_out_channels": [4096, 4096]}, {"layers_per_block": 10**9}, {"block_out_channels": [8] * 10**5}],
)
def test_no_memory_is_taken_for_what_only_a_configuration_describes(folder, changes, monkeypatch):
    edit_json(folder / "unet" / "config.json", **changes)
    built = []
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda layer: built.append(layer.weight.device.type))
    with pytest.raises(AntiPureError, match="does not hold the UNet2DModel its configuration describes"):
        load_denoiser(folder)
    assert set(built) <= {"meta"}
    assert len(built) < 100


@pytest.mark.parametrize("changes", [{"block_out_channels": [4096] * 4}, {"encoder": [10**9, -(10**9), 1, 1]}])
def test_no_memory_is_taken_for_what_only_our_format_describes(tmp_path, changes, monkeypatch):
    state, metadata = checkpoints.read_weights(checkpoints.BUNDLED_JUDGE, "")
    config = json.loads(metadata["config"])
    assert len(config["unet"]["encoder"]) == 4
    config["unet"].update(changes)
    save_file(state, tmp_path / "own.safetensors", metadata={**metadata, "config": json.dumps(config)})
    built = []
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda layer: built.append(layer.weight.device.type))
    assert_refused(tmp_path / "own.safetensors", "has shape .* where the rest of it asks for|more layers than")
    assert set(built) <= {"meta"}
    assert len(built) < 100


def test_scheduler_settings_without_a_class_are_ddpm():
    assert torch.equal(beta_schedule({}), beta_schedule({"_class_name": "DDPMScheduler"}))


@pytest.mark.parametrize("name", ["s", "t.pt", "model with spaces"])
def test_the_path_is_named_even_where_its_letters_are_in_the_sentence(folder, monkeypatch, name):
    monkeypatch.chdir(folder.parent)
    if name.endswith(".pt"):
        torch.save({"state_dict": adm_state("conv sampling, no scale-shift, one head")}, name)
    else:
        folder.rename(name)
        edit_json(folder.parent / name / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler")
    with pytest.raises(AntiPureError, match=rf"^{name} cannot be used\. It"):
        load_denoiser(name)
