"""The nodes of LoRA patching over a tiny generator, without ComfyUI."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from antipure.methods.architecture import fingerprint
from antipure.methods.attacks.ensemble import combine
from antipure.methods.errors import AntiPureError
from antipure.methods.generators.procedural_faces import draw_faces
from antipure.methods.generators.stargan import StarGAN, StarGANNetwork
from antipure.methods.lora_patching.low_rank import PatchConfig
from antipure.methods.lora_patching.patch import LoraPatch, new_patch, patched, patched_copy
from antipure.nodes import NODE_CLASS_MAPPINGS, host
from safetensors.torch import load_file

EDITS = ("dark", "light")


def node(name: str):
    return NODE_CLASS_MAPPINGS[f"AntiPure{name}"]()


@pytest.fixture
def generator() -> StarGAN:
    torch.manual_seed(0)
    network = StarGANNetwork(conv_dim=4, n_labels=2, blocks=1)
    return StarGAN(network, {"dark": (1.0, 0.0), "light": (0.0, 1.0)}, size=32)


@pytest.fixture
def faces() -> torch.Tensor:
    """IMAGE B×H×W×C."""
    return draw_faces(range(3), side=32).permute(0, 2, 3, 1)


def random_patch(generator, gate: str = "scalar", mode: str = "evaluation") -> LoraPatch:
    applied = new_patch(generator, PatchConfig(2, 2.0, gate))
    try:
        tensors = applied.tensors()
    finally:
        applied.remove()
    stream = torch.Generator().manual_seed(1)
    tensors = {
        key: 0.3 * torch.randn(value.shape, generator=stream) if "lora_B" in key else value
        for key, value in tensors.items()
    }
    return LoraPatch(PatchConfig(2, 2.0, gate), tensors, fingerprint(generator), {"mode": mode})


@pytest.fixture
def output(monkeypatch, tmp_path):
    """Where nodes save."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "output" / "antipure_patches"


def test_edits_come_out_edit_by_edit_at_the_pictures_own_size(generator, faces):
    image, names = node("EditFace").edit(generator, faces, "light, dark")
    assert image.shape == (6, 32, 32, 3)
    assert names.splitlines() == [f"{edit}, picture {i}" for edit in ("light", "dark") for i in (1, 2, 3)]
    expected = (generator.edit(faces.permute(0, 3, 1, 2) * 2 - 1, "light") + 1) / 2
    assert torch.allclose(image[:3], expected.detach().permute(0, 2, 3, 1).clamp(0, 1), atol=1e-6)
    large, _ = node("EditFace").edit(generator, torch.rand(1, 50, 41, 4), "all")
    assert large.shape == (2, 50, 41, 4)


@pytest.mark.parametrize(("edits", "sentence"), [("beard", "no edit 'beard'.*dark, light"), (" , ", "given no edit")])
def test_wrong_edits_name_the_right_ones(generator, faces, edits, sentence):
    for call in (
        lambda: node("EditFace").edit(generator, faces, edits),
        lambda: node("DisruptProtect").protect(faces, generator, edits, 6, 2, 1, 0),
        lambda: node("DefenceReport").measure(generator, faces, edits, "FAKE", 6, 75, 0),
    ):
        with pytest.raises(AntiPureError, match=sentence):
            call()


def test_disrupting_keeps_budget_mask_and_alpha(generator):
    image = torch.rand(2, 40, 32, 4)
    mask = torch.zeros(1, 40, 32)
    mask[:, :20] = 1
    with torch.inference_mode():
        protected, view, report = node("DisruptProtect").protect(
            image.clone(), generator, "all", 6.375, 3, 2.0, 0, mask=mask
        )
    change = (protected - image)[..., :3].abs() * 255
    assert 5 < change.max() <= 6.375 + 1e-3
    assert change[:, 20:].max() == 0
    assert torch.equal(protected[..., 3], image[..., 3])
    assert view.shape == (2, 40, 32, 3)
    assert len(report.splitlines()) == 3


def test_disrupting_acts_through_the_resizing_of_an_editing_tool(generator):
    image = torch.rand(1, 96, 80, 3, generator=torch.Generator().manual_seed(3))
    noise = (image + 6 / 255 * (torch.rand(image.shape) * 2 - 1).sign()).clamp(0, 1)
    protected, _, _ = node("DisruptProtect").protect(image, generator, "dark", 6, 10, 1.275, 0)
    plain, disturbed, noisy = (node("EditFace").edit(generator, x, "dark")[0] for x in (image, protected, noise))
    assert (disturbed - plain).square().mean() > 3 * (noisy - plain).square().mean()


@pytest.mark.parametrize("gate", ["scalar", "input"])
def test_applying_makes_a_copy_that_shares_weights_and_leaves_the_original(generator, faces, gate):
    host.manage(generator)  # as its loader does: where there is a GPU, the copy goes there, and what they share
    patch = random_patch(generator, gate)
    before = node("EditFace").edit(generator, faces, "all")[0]
    copied, model = node("LoraPatchApply").apply(patch, 1.0, generator=generator)
    assert model is None
    after = node("EditFace").edit(copied, faces, "all")[0]
    assert (after - before).abs().max() > 0.01
    assert torch.equal(node("EditFace").edit(generator, faces, "all")[0], before)
    with patched(generator, patch):
        expected = node("EditFace").edit(generator, faces, "all")[0]
    assert torch.allclose(after, expected, atol=1e-5)
    norms = [m.weight.data_ptr() for m in generator.network.modules() if isinstance(m, torch.nn.InstanceNorm2d)]
    shared = [m.weight.data_ptr() for m in copied.network.modules() if isinstance(m, torch.nn.InstanceNorm2d)]
    assert norms == shared
    none = patched_copy(generator, patch, 0.0)
    assert torch.allclose(node("EditFace").edit(none, faces, "all")[0], before, atol=1e-6)


def test_a_patch_of_another_architecture_is_refused_and_leaves_everything(generator, faces):
    other = StarGAN(StarGANNetwork(conv_dim=8, n_labels=2, blocks=1), generator.labels, size=32)
    before = node("EditFace").edit(other, faces, "all")[0]
    with pytest.raises(AntiPureError, match="not for this network"):
        node("LoraPatchApply").apply(random_patch(generator), 1.0, generator=other)
    with pytest.raises(AntiPureError, match="Nothing to patch"):
        node("LoraPatchApply").apply(random_patch(generator), 1.0)
    assert torch.equal(node("EditFace").edit(other, faces, "all")[0], before)


def test_saving_numbers_files_and_loading_gives_the_patch_back(generator, output):
    patch = random_patch(generator, mode="defensive")
    paths = [node("SaveLoraPatch").save(patch, "mine/patch", "patch")["result"][0] for _ in range(2)]
    assert [p.rpartition("/")[2] for p in paths] == ["patch_00001.safetensors", "patch_00002.safetensors"]
    loaded, report = node("LoadLoraPatch").load(paths[1])
    assert loaded.tensors.keys() == patch.tensors.keys()
    assert all(torch.equal(loaded.tensors[key], value) for key, value in patch.tensors.items())
    assert "defensive" in report
    assert "rank 2" in report


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp/elsewhere", "  "])
def test_names_that_leave_the_folder_are_refused(generator, output, name):
    with pytest.raises(AntiPureError, match="plain name"):
        node("SaveLoraPatch").save(random_patch(generator), name, "patch")
    assert not output.exists()


def test_a_place_that_cannot_be_written_is_found_before_training(generator, faces, output, monkeypatch):
    output.parent.mkdir()
    output.touch()
    check = node("SaveLoraPatch").VALIDATE_INPUTS
    assert "cannot be written" in check("mine/patch")
    assert "plain name" in check("../x")
    assert check() is True, "it is wired"
    monkeypatch.setattr("antipure.nodes.lora_patch.train_patch", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(AntiPureError, match="cannot be written"):
        train(generator, faces, state="a")


def test_a_standard_lora_needs_the_model_it_is_for(generator, output):
    with pytest.raises(AntiPureError, match="wire the MODEL"):
        node("SaveLoraPatch").save(random_patch(generator), "x", "standard LoRA")


def train(generator, faces, **changes):
    settings = {
        "mode": "defensive", "edits": "dark", "warning_text": "NO", "rank": 2, "epochs": 2, "gate": "scalar",
        "batch": 2, "learning_rate": 1e-3, "precision": "fp32", "seed": 0, **changes,
    }  # fmt: skip
    with torch.inference_mode():
        return node("TrainLoraPatch").train(generator, faces.clone(), **settings)


def test_training_gives_a_patch_and_leaves_the_generator(generator, faces, output):
    before = {key: value.clone() for key, value in generator.network.state_dict().items()}
    patch, curve, report = train(generator, faces)
    assert patch.metadata["mode"] == "defensive"
    assert patch.config.rank == 2
    assert curve.ndim == 4
    assert "4 steps" in report
    assert "without feature alignment" in report
    after = generator.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert train(generator, faces, mode="evaluation", rank=0, epochs=0)[0].config.rank == 8


def test_a_named_training_goes_on_where_it_stopped(generator, faces, output):
    whole, _, _ = train(generator, faces, epochs=2)
    train(generator, faces, epochs=1, state="mine")
    assert (output / "mine.state").is_file()
    resumed, _, report = train(generator, faces, epochs=2, state="mine")
    assert "4 steps" in report
    assert all(torch.allclose(resumed.tensors[key], value, atol=1e-6) for key, value in whole.tensors.items())


def test_a_clip_vision_aligns_features_and_keeps_its_weights(generator, faces):
    """As ComfyUI gives it: inference tensors, a model that returns a tuple."""

    class Vision(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def forward(self, pixel_values, intermediate_output):
            return None, None, self.layer(pixel_values.mean((2, 3))), None

    with torch.inference_mode():
        model = Vision()
    clip = type("ClipVision", (), {"model": model, "patcher": object(), "load_device": "cpu", "image_size": 16})()
    weight = model.layer.weight
    loaded = []
    host.load_patchers, original = loaded.extend, host.load_patchers
    try:
        _, _, report = train(generator, faces, mode="evaluation", language_encoder=clip)
        with pytest.raises(AntiPureError, match="no CLIP_VISION"):
            train(generator, faces, visual_encoder=object())
    finally:
        host.load_patchers = original
    assert loaded == [clip.patcher]
    assert "with feature alignment" in report
    assert "mmfa" in report
    assert model.layer.weight is weight
    assert weight.is_inference()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((0, 32, 32, 3), "has no pixels"), ((1, 8, 8, 3), "smallest this generator can use")],
)
def test_bad_training_sets_are_refused(generator, shape, sentence):
    with pytest.raises(AntiPureError, match=sentence):
        train(generator, torch.rand(shape))


def test_the_report_has_every_row_for_original_and_patched(generator, faces):
    patch = random_patch(generator)
    found = node("DefenceReport").measure(generator, faces, "dark", "FAKE", 6.375, 75, 0, patch=patch)
    report, sheet = found["result"]
    rows = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("| ")]
    names = [
        "picture as it is", "random noise", "JPEG 75", "Disrupting", "Disrupting + JPEG 75",
        "Disrupting, leaked patch", "Disrupting, leaked patch + JPEG 75", "strong defender",
        "strong defender + JPEG 75",
    ]  # fmt: skip
    assert rows == ["input", *names, "interval, cases", *names]
    quick = node("DefenceReport").measure(
        generator, faces, "dark", "FAKE", 6.375, 75, 0, patch=patch, strong_defender=False
    )
    assert "strong" not in quick["result"][0]
    assert torch.equal(quick["result"][1], sheet)
    assert "warning" not in report
    assert sheet.shape[0] == 1
    with pytest.raises(AntiPureError, match="resize them to 32×32"):
        node("DefenceReport").measure(generator, torch.rand(1, 40, 40, 3), "dark", "FAKE", 6, 75, 0)


def test_one_watermark_for_all_pictures_and_two_networks(generator, faces):
    """Made from other faces: the same on every picture that leaves room for it, and another with a second network."""
    protect = node("DisruptProtect").protect
    others = 0.25 + 0.5 * torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    pictures = (0.2 + 0.6 * faces).mul(255).round() / 255
    protected, view, report = protect(
        pictures, generator, "dark", 6.0, 2, 1.0, 0, defence="CMUA-Watermark", watermark_faces=others
    )
    changes = ((protected - pictures) * 255).round()
    assert all(torch.equal(change, changes[0]) for change in changes)
    assert 0 < changes.abs().max() <= 6
    assert report.startswith("CMUA-Watermark against StarGAN: dark; 6 levels, 2 steps")
    second = copy.copy(generator)
    second.network = copy.deepcopy(generator.network)
    with torch.no_grad():
        for parameter in second.network.parameters():
            parameter.mul_(-1)
    both = protect(
        pictures, generator, "dark", 6.0, 2, 1.0, 0, defence="CMUA-Watermark", watermark_faces=others,
        second_generator=second,
    )  # fmt: skip
    assert not torch.equal(both[0], protected)
    assert "StarGAN and StarGAN" in both[2]
    plain = protect(pictures, generator, "dark", 6.0, 2, 1.0, 0)
    assert torch.equal(plain[0], protect(pictures, generator, "dark", 6.0, 2, 1.0, 0, defence="Disrupting")[0])
    with pytest.raises(AntiPureError, match="choose it as defence"):
        protect(pictures, generator, "dark", 6.0, 2, 1.0, 0, watermark_faces=others)
    found = node("DefenceReport").measure(
        generator, faces, "dark", "FAKE", 6.0, 75, 0, strong_defender=False, watermark_faces=others
    )
    assert "| CMUA-Watermark + JPEG 75 " in found["result"][0]


def test_a_defence_made_against_another_patch(generator, faces):
    report = node("DefenceReport").measure
    other = random_patch(generator, "none")
    given = (generator, faces, "dark", "FAKE", 6.0, 75, 0)
    text = report(*given, random_patch(generator), strong_defender=False, other_patch=other)["result"][0]
    assert text.count("| Disrupting, another patch + JPEG 75 ") == 2
    strange = StarGAN(StarGANNetwork(2, 2, 1), {"dark": (1.0, 0.0), "light": (0.0, 1.0)}, size=32)
    with pytest.raises(AntiPureError, match="not for this network"):
        report(*given, strong_defender=False, other_patch=random_patch(strange), watermark_faces=faces)


def test_a_tiled_warning_is_trained_and_looked_for_where_it_is(generator, faces, monkeypatch):
    """The report draws the tiles of the patch's own seed, and paints over the middle."""
    from antipure.methods.lora_patching.warning import text_warning, tiled_warning
    from antipure.nodes import defence_report as report_node
    from antipure.nodes import lora_patch as train_node

    given, measured = [], []
    real, report = train_node.train_patch, report_node.defence_report
    monkeypatch.setattr(train_node, "train_patch", lambda *a, **k: given.append(k["warning"]) or real(*a, **k))
    monkeypatch.setattr(report_node, "defence_report", lambda *a, **k: measured.append(k) or report(*a, **k))
    patch, _, _ = train(generator, faces, epochs=1, seed=5, placement="tiled", warning_text="A")
    draw = functools.partial(text_warning, text="A")
    assert torch.equal(given[0], tiled_warning(draw, 32, 32, 5))
    assert patch.metadata["placement"] == "tiled"
    node("DefenceReport").measure(generator, faces, "dark", "A", 6, 75, 0, patch=patch, strong_defender=False)
    assert torch.equal(measured[0]["warning"], given[0])
    assert torch.equal(measured[0]["usual"], text_warning(32, 32, "A"))
    train(generator, faces, epochs=1, warning_text="A")
    assert torch.equal(given[1], text_warning(32, 32, "A"))


def test_the_report_sees_a_warning_where_there_is_one(generator, faces):
    """A patch that prints the warning perfectly: a network whose output is the warned edit."""
    from antipure.methods.lora_patching.defence_report import INPUTS, defence_report
    from antipure.methods.lora_patching.warning import text_warning, warned

    warning = text_warning(32, 32)
    pictures = faces.permute(0, 3, 1, 2)
    patch = random_patch(generator, mode="defensive")
    plain_edit, patched_now = type(generator).edit, []

    class Printing(StarGAN):
        def edit(self, pixels, edit):
            output = plain_edit(self, pixels, edit)
            marks = any(hasattr(module, "lora_A") for module in self.network.modules())
            patched_now.append(marks)
            return warned(output, warning) if marks else output

    generator.__class__ = Printing
    report = defence_report(generator, patch, pictures, edits=["dark"], warning=warning)
    assert any(patched_now)
    assert not all(patched_now)
    row = report.row(INPUTS[0])
    assert row.visible == row.visible_jpeg == 1
    assert row.original == 0
    unpatched = defence_report(generator, None, pictures, edits=["dark"], warning=warning).row(INPUTS[0])
    assert unpatched.visible == 0
    assert math.isnan(defence_report(generator, None, pictures, edits=["dark"]).row(INPUTS[0]).visible)


def test_a_model_patch_trains_on_the_pixel_denoiser(tiny):
    pictures = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    with torch.inference_mode():
        patch, curve, report = node("TrainModelPatch").train(tiny, pictures, "A", 30, 2, 4, "scalar", 1e-2, 0)
    assert all(torch.equal(before[key], value) for key, value in tiny.unet.state_dict().items())
    assert patch.metadata["mode"] == "defensive"
    assert "30 steps" in report
    assert curve.shape[-1] == 3


@pytest.mark.parametrize("mode", ["mean", "worst"])
def test_combined_denoisers_have_no_network_to_patch(tiny, make_tiny, mode):
    other = make_tiny(seed=1)
    combined = combine(combine(tiny, other, mode), make_tiny(seed=2), "mean")
    before = {key: value.clone() for key, value in other.unet.state_dict().items()}
    with pytest.raises(AntiPureError, match="no single network to patch; wire one of them here"):
        node("TrainModelPatch").train(combined, torch.rand(1, 16, 16, 3), "A", 1, 1, 4, "scalar", 1e-2, 0)
    assert all(torch.equal(before[key], value) for key, value in other.unet.state_dict().items())


def test_standard_lora_files_hold_the_dense_update(generator, tmp_path):
    from antipure.methods.files import write_safetensors
    from antipure.methods.lora_patching.standard_lora import standard_lora

    torch.manual_seed(0)
    network = torch.nn.ModuleDict(
        {"linear": torch.nn.Linear(6, 5), "conv": torch.nn.Conv2d(4, 6, 3, groups=2, padding=1)}
    )
    applied = new_patch(network, PatchConfig(3))
    tensors = {key: torch.randn(value.shape) for key, value in applied.tensors().items()}
    applied.load(tensors)
    deltas = {name: layer.get_delta_weight() for name, layer in applied.layers.items()}
    applied.remove()
    patch = LoraPatch(PatchConfig(3), tensors, fingerprint(network))
    write_safetensors(tmp_path / "lora.safetensors", standard_lora(network, patch, prefix="unet."), {})
    lora = load_file(tmp_path / "lora.safetensors")
    for name, delta in deltas.items():
        up, down, alpha = (lora[f"unet.{name}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
        product = (up.flatten(1) @ down.flatten(1)) * alpha / down.shape[0]
        if name == "conv":  # block-diagonal: other loaders see no groups, so each block is compared with its own
            product = product.reshape(6, *delta.shape[1:])
        assert torch.allclose(product.reshape(delta.shape), delta, atol=1e-5)
