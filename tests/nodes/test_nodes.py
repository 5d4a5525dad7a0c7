"""The ComfyUI surface, run without ComfyUI: contract, conversions, batches, masks, alpha."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from antipure.methods.errors import AntiPureError
from antipure.nodes import convert

ROOT = Path(__file__).resolve().parents[2]


def run(node_id: str, **inputs):
    """Call a node as ComfyUI does: in inference mode, with inference tensors."""
    node_class = NODE_CLASS_MAPPINGS[node_id]
    with torch.inference_mode():
        inputs = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        returned = getattr(node_class(), node_class.FUNCTION)(**inputs)
    return returned["result"] if isinstance(returned, dict) else returned


def protect(image, denoiser, **changes):
    settings = {"preset": "strong", "levels": 8.0, "steps": 2, "seed": 0, **changes}
    return run("AntiPureProtect", image=image, denoiser=denoiser, **settings)


def saved(image: torch.Tensor) -> np.ndarray:
    """The integers ComfyUI's SaveImage writes."""
    return np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8).astype(int)


def eight_bit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


@pytest.fixture(scope="module")
def bundled():
    return run("AntiPureLoadDenoiser", denoiser="bundled", precision="fp32")[0]


def test_public_contract_has_not_changed():
    """Ids, input names and output types are what shared workflows rely on."""
    contract = {
        node_id: {
            "inputs": {
                group: {name: spec[0] if isinstance(spec[0], str) else "COMBO" for name, spec in inputs.items()}
                for group, inputs in node.INPUT_TYPES().items()
                if group != "hidden"
            },
            "outputs": list(zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)),
            "title": NODE_DISPLAY_NAME_MAPPINGS[node_id],
        }
        for node_id, node in NODE_CLASS_MAPPINGS.items()
    }
    expected = json.loads((ROOT / "tests" / "data" / "contract.json").read_text())
    assert json.loads(json.dumps(contract)) == expected


def test_importing_the_pack_loads_no_heavy_library():
    heavy = ("diffusers", "peft", "torchmetrics", "matplotlib", "transformers", "scipy", "onnxruntime", "kornia")
    code = f"import sys, antipure; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.strip() == "[]"


def test_only_the_host_files_import_comfyui():
    import ast

    allowed = {ROOT / "nodes" / name for name in ("host.py", "model_folders.py", "outputs.py")}
    hosts = {"comfy", "folder_paths", "execution", "server", "comfy_extras", "nodes"}
    for folder in ("nodes", "methods", "kernels", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                used = {name.split(".")[0] for name in names} & hosts
                assert not used or path in allowed, f"{path} imports {used}"


def test_protected_picture_keeps_its_budget_when_saved(bundled, face):
    image = face.permute(0, 2, 3, 1)[:, :70, :90]
    protected, view, report = protect(image, bundled, levels=5.0)
    assert protected.shape == image.shape == view.shape
    assert protected.dtype == torch.float32
    change = np.abs(saved(protected) - saved(image))
    assert change.max() == 5
    assert "largest change 5 levels" in report
    assert "strong" in report


@pytest.mark.parametrize("preset", ["strong", "paper", "random", "shift", "blocks"])
def test_every_picture_of_a_batch_as_if_alone(tiny, preset):
    image = eight_bit(3, 20, 27, 3)
    together = protect(image, tiny, preset=preset)[0]
    for i in range(3):
        assert torch.equal(protect(image[i : i + 1], tiny, preset=preset)[0], together[i : i + 1])
    assert (saved(together) != saved(image)).mean() > 0.3


def test_same_seed_same_bytes_other_seed_other_bytes(tiny):
    image = eight_bit(1, 20, 20, 3)
    first = protect(image, tiny)[0]
    assert torch.equal(first, protect(image, tiny)[0])
    assert not torch.equal(first, protect(image, tiny, seed=2**63)[0])


def test_alpha_passes_through_untouched(tiny):
    image = eight_bit(2, 20, 20, 4)
    protected = protect(image, tiny)[0]
    assert torch.equal(protected[..., 3], image[..., 3])
    assert torch.equal(protected[..., :3], protect(image[..., :3], tiny)[0])
    pure = run("AntiPureDiffusionPurify", image=image, denoiser=tiny, method="gridpure", timestep=2, iterations=1,
               gamma=0.1, seed=0)[0]  # fmt: skip
    assert torch.equal(pure[..., 3], image[..., 3])


def test_grey_and_half_precision_images(tiny):
    half = eight_bit(1, 18, 18, 3).half()
    protected = protect(half, tiny, levels=4.0)[0]
    assert protected.dtype == torch.float32
    assert ((protected - half.float()).abs().max() * 255) <= 4 + 2e-3  # values within .001 of a level count as it
    assert protect(eight_bit(1, 18, 18, 1), tiny)[0].shape == (1, 18, 18, 3)


def test_visibility_goes_with_presets_and_alpha_and_is_reported(tiny):
    image = eight_bit(1, 16, 16, 4)
    image[:, :, 8:, :3] = 0.5 * 255 // 1 / 255  # flat ground
    full, plain, gentle = (protect(image, tiny, preset="random", **more) for more in (
        {"visibility": "full"}, {}, {"visibility": "gentle"}
    ))  # fmt: skip
    assert torch.equal(full[0], plain[0])
    assert "visibility" not in plain[2]
    assert gentle[2].splitlines()[1] == "visibility gentle"
    assert torch.equal(gentle[0][..., 3], image[..., 3])
    flat = (saved(gentle[0]) - saved(image))[:, :, 12:, :3]
    assert 0 < np.abs(flat).max() < 4
    assert (flat == flat[..., :1]).all(), "no colour on flat ground"


def test_mask_zero_is_untouched_and_mask_one_is_protected(tiny):
    image = eight_bit(2, 24, 24, 3)
    mask = torch.zeros(24, 24)
    mask[:, 12:] = 1
    for given in (mask, mask[None], mask.expand(2, -1, -1)):
        protected = protect(image, tiny, mask=given)[0]
        assert torch.equal(protected[:, :, :12], image[:, :, :12])
        assert (protected[:, :, 12:] != image[:, :, 12:]).float().mean() > 0.3


def test_empty_64_mask_means_no_mask(tiny):
    image = eight_bit(1, 20, 20, 3)
    assert torch.equal(protect(image, tiny, mask=torch.zeros(1, 64, 64))[0], protect(image, tiny)[0])


def test_a_mask_of_nothing_is_told_in_words(tiny):
    """LoadImage gives such a mask, of the picture's size, for an opaque RGBA picture."""
    image, mask = eight_bit(2, 24, 24, 3), torch.zeros(2, 24, 24)
    mask[1, :12] = 1
    protected, _, report = protect(image, tiny, mask=mask)
    assert torch.equal(protected[0], image[0])
    first, second = report.split("picture 2:")
    assert "the mask forbids every pixel:\nnothing was changed" in first
    assert "forbids" not in second
    assert "forbids" not in protect(image, tiny, mask=torch.zeros(1, 64, 64))[2]


def test_mask_of_another_size_is_resized():
    picture = torch.zeros(1, 3, 40, 60)
    mask = torch.zeros(20, 30)
    mask[:, 15:] = 1
    resized = convert.from_mask(mask, picture)
    assert resized.shape == (1, 1, 40, 60)
    assert resized[..., :25].max() == 0
    assert resized[..., 35:].min() == 1


def test_objective_replaces_the_preset(tiny):
    image = eight_bit(1, 20, 20, 3)
    settings = {
        k: v[1]["default"] for k, v in NODE_CLASS_MAPPINGS["AntiPureObjective"].INPUT_TYPES()["required"].items()
    }
    (paper,) = run("AntiPureObjective", **settings)
    out, _, report = protect(image, tiny, objective=paper)
    assert torch.equal(out, protect(image, tiny, preset="paper")[0])
    assert "own objective" in report


@pytest.mark.parametrize("method", ["gridpure", "diffpure", "diffpure_resized"])
def test_purify_keeps_shape_and_seed(tiny, method):
    image = eight_bit(2, 21, 35, 3)
    settings = {"method": method, "timestep": 3, "iterations": 2, "gamma": 0.1}
    first, view = run("AntiPureDiffusionPurify", image=image, denoiser=tiny, seed=1, **settings)
    again, _ = run("AntiPureDiffusionPurify", image=image, denoiser=tiny, seed=1, **settings)
    other, _ = run("AntiPureDiffusionPurify", image=image, denoiser=tiny, seed=2, **settings)
    assert first.shape == view.shape == image.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_metrics_node_outputs_agree_with_its_report():
    image = eight_bit(1, 32, 32, 3)
    other = (image + 3 / 255).clamp(0, 1)
    values = run("AntiPureMetrics", reference=image, image=other)
    assert values[2] == 3
    assert f"PSNR {values[0]:.2f} dB" in values[5]
    assert f"detail ratio {values[4]:.3f}" in values[5]
    assert f"peak share {100 * values[6]:.2f} %" in values[5]
    assert f"CIEDE2000 {values[7]:.2f}, 95 % below {values[8]:.2f}" in values[5]
    assert f"seen: luma {values[9]:.2f}, chroma {values[10]:.2f} levels" in values[5]
    assert values[6] > 0.3
    assert "a stripe" in values[5]


def test_metrics_node_compares_a_batch_with_one_reference():
    image = eight_bit(3, 32, 32, 3)
    report = run("AntiPureMetrics", reference=image[:1], image=image)[5]
    assert report.count("picture") == 3
    with pytest.raises(AntiPureError, match="2 pictures as reference for 3"):
        run("AntiPureMetrics", reference=image[:2], image=image)


@pytest.mark.parametrize("size", [(1, 1), (9, 33), (128, 128), (400, 600)])
def test_sheets_for_every_picture_of_any_size(size):
    image = eight_bit(2, *size, 3)
    (plain,) = run("AntiPureInspect", original=image, protected=1 - image)
    (full,) = run("AntiPureInspect", original=image, protected=1 - image, purified=image, purified_clean=1 - image)
    assert len(plain) == len(full) == 2
    assert full.shape[2] > plain.shape[2] > 500
    assert not torch.equal(full[0], full[1])


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(1, 0, 8, 3), "no pixels"),
        (torch.full((1, 8, 8, 3), float("nan")), "NaN"),
        (torch.full((1, 8, 8, 3), 255.0), "from 255 to 255, but an IMAGE lies in 0..1"),
        (eight_bit(1, 8, 8, 3).mul(255).byte(), "an IMAGE lies in 0..1"),
        (torch.ones(1, 8, 8, 3, dtype=torch.uint8), "an IMAGE lies in 0..1"),
        (eight_bit(1, 8, 8, 3) * 2 - 1, "from -1 to"),
        (torch.tensor([0.5, 0.5, 0.5, 255]).expand(1, 8, 8, 4), "from 0.5 to 255"),
        (torch.tensor([0.5, 0.5, 0.5, float("nan")]).expand(1, 8, 8, 4), "nan"),
        (torch.zeros(1, 8, 8, 2), "no IMAGE"),
        (torch.zeros(8, 8, 3), "no IMAGE"),
        ("a text", "no IMAGE"),
    ],
)
def test_bad_pictures_are_refused_in_one_sentence(tiny, image, sentence):
    with pytest.raises(AntiPureError, match=sentence) as caught:
        protect(image, tiny)
    assert "\n" not in str(caught.value)


def test_overshoot_is_clamped_as_ever(tiny):
    image = eight_bit(1, 16, 16, 3)
    beyond = torch.where(image == 1, 1.4, torch.where(image == 0, -0.4, image))
    beyond[0, 0, 0], image[0, 0, 0] = 1.4, 1
    assert torch.equal(protect(beyond, tiny)[0], protect(image, tiny)[0])


def test_results_of_nan_are_refused_before_they_are_shown(tiny, monkeypatch):
    """A network of NaN purified to a black picture."""
    monkeypatch.setattr(tiny, "predict", lambda x_t, t: (x_t * torch.nan, None))
    with pytest.raises(AntiPureError, match="gives NaN or infinite values") as caught:
        run("AntiPureDiffusionPurify", image=eight_bit(1, 20, 20, 3), denoiser=tiny, method="gridpure", timestep=2,
            iterations=1, gamma=0.1, seed=0)  # fmt: skip
    assert "\n" not in str(caught.value)
    for value in (float("nan"), float("inf")):
        with pytest.raises(AntiPureError, match="result holds NaN or infinite"):
            convert.to_image(torch.full((1, 3, 4, 4), value))


@pytest.mark.parametrize(("levels", "steps", "sentence"), [(0, 2, "levels"), (-3, 2, "levels"), (8, 0, "steps")])
def test_bad_budgets_are_refused(tiny, levels, steps, sentence):
    for preset in ("strong", "random"):
        if preset == "random" and steps == 0:
            continue
        with pytest.raises(AntiPureError, match=sentence):
            protect(eight_bit(1, 16, 16, 3), tiny, levels=levels, steps=steps, preset=preset)


def test_transform_keeps_alpha_and_does_not_look_at_the_batch():
    image = eight_bit(2, 21, 34, 4)
    (found,) = run("AntiPureTransform", image=image, transform="jpeg75+resize0.5+noise4", seed=3)
    (alone,) = run("AntiPureTransform", image=image[1:], transform="jpeg75+resize0.5+noise4", seed=3)
    assert found.shape == image.shape
    assert torch.equal(found[..., 3], image[..., 3])
    assert torch.equal(found[1:], alone)
    with pytest.raises(AntiPureError, match="no transform"):
        run("AntiPureTransform", image=image, transform="wash", seed=0)
