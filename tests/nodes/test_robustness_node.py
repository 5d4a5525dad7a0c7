"""Robustness Report as a node and as `antipure report`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from antipure import NODE_CLASS_MAPPINGS
from antipure.cli import report as report_command
from antipure.cli.executor import check_node, execution_order
from antipure.cli.graph import read_workflow
from antipure.cli.main import main
from antipure.cli.report import report_prompt
from antipure.methods.diffusion.autoencoder import Autoencoder
from antipure.methods.diffusion.taesd import TinyAutoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.image import structural_distortion
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.purification.impress import impress
from antipure.methods.purification.purifiers import parse_purifiers
from antipure.methods.purification.vae import vae_round_trip
from antipure.nodes.convert import from_image
from antipure.nodes.robustness import PURIFIERS
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NODE = NODE_CLASS_MAPPINGS["AntiPureRobustnessReport"]


def eight_bit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def run(original, image, **changes) -> dict:
    """Call the node as ComfyUI does: in inference mode, with inference tensors."""
    settings = {"names": "", "purifiers": "jpeg60, blur1", "made_against": "", "curve_iterations": 0, "seed": 0}
    settings |= {"seeds": 1, "shown": 1, **changes}
    with torch.inference_mode():
        return NODE().measure(original.clone(), image.clone(), **settings)


def rows_of(report: dict, kind: str, protection: str) -> list[dict]:
    return [row for row in report["rows"] if (row["kind"], row["protection"]) == (kind, protection)]


def test_every_output_tells_of_the_same_report(tiny):
    original, image = eight_bit(2, 20, 24, 3), eight_bit(2, 20, 24, 4, seed=1)
    purifiers = "gridpure1@2, held_out:gridpure2@2, jpeg60"
    returned = run(original, image, purifiers=purifiers, denoiser=tiny, held_out=tiny, image_3=original, names="a, b",
                   made_against="gridpure1@2", curve_iterations=2, seed=2**64 - 1, seeds=2, shown=2)  # fmt: skip
    sheet, markdown, text, found, worst = returned["result"]
    report = json.loads(text)
    assert sheet.shape[0] == 1
    assert sheet.shape[2:] == (1480, 3)
    assert report["protections"] == ["a", "b"]
    assert [column["name"] for column in report["purifiers"]] == purifiers.split(", ")
    assert [column["made_against"] for column in report["purifiers"]] == [True, False, False]
    assert report["seeds"] == [2**64 - 1, 0]
    assert {row["picture"] for row in report["rows"]} == {0, 1}
    assert report["example"] == 1
    assert report["curve"]["iterations"] == [1, 2]
    assert found == "\n".join([*report["headlines"], report["verdict"]])
    assert all(f"**{line}**" in markdown for line in report["headlines"])
    assert report["verdict"].split("\n")[0] in markdown
    assert worst == min(case["ratio"] for case in report["worst"] if case["protection"] == "a")
    assert all(case["ratio"] == 1 for case in report["worst"] if case["protection"] == "b")
    assert returned["ui"] == {"text": [found], "markdown": [markdown], "report": [json.loads(text)]}


class Averages(Autoencoder):
    """A VAE whose latent is the mean colour of squares, and its picture their mosaic."""

    channels, device = 3, torch.device("cpu")

    def __init__(self, name: str, multiple: int = 4):
        self.name, self.multiple = name, multiple

    def parts(self):
        return ()

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, self.multiple)

    def decode(self, latent):
        return torch.nn.functional.interpolate(latent, scale_factor=self.multiple)


class Descriptor:
    """What Load Upscale Model gives: this one enlarges twice and darkens."""

    scale, input_channels, output_channels = 2, 3, 3
    architecture = SimpleNamespace(name="Darker")

    def to(self, device):
        return self

    def __call__(self, picture):
        return 0.9 * torch.nn.functional.interpolate(picture, scale_factor=2, mode="nearest")


def test_vaes_that_are_wired_become_columns():
    original, image = eight_bit(1, 20, 24, 3), eight_bit(1, 20, 24, 3, seed=1)
    _, markdown, text, found, _ = run(original, image, vae=Averages("a"), vae_3=Averages("a"))["result"]
    report = json.loads(text)
    assert report["autoencoders"] == ["a", "a (2)"]
    (row,) = rows_of(report, "protection", "protected")
    expected = latent_shift(*(from_image(x)[0] for x in (original, image)), Averages("a")).value.item()
    assert row["latent"] == {"a": [expected], "a (2)": [expected]}
    assert "Latent shift of protected" in markdown
    assert "The VAE a sees it" in found


def test_vaes_and_the_upscale_model_purify_under_their_inputs_names(tiny):
    original, image = eight_bit(1, 20, 24, 3), eight_bit(1, 20, 24, 3, seed=1)
    listed = "gridpure1@1, vae, vae:vae, vae_2:vae, vae:impress2, upscale2, noise8+upscale2"
    assert NODE.VALIDATE_INPUTS(purifiers=listed, made_against="vae:vae1, upscale2") is True
    report = json.loads(
        run(original, image, purifiers=listed, made_against="vae:vae1, upscale2", denoiser=tiny,
            vae=Averages("a"), vae_2=Averages("b", 8), upscale_model=Descriptor())["result"][2]
    )  # fmt: skip
    networks = [(c["name"], c["network"], c["denoiser"]) for c in report["purifiers"][1:]]
    assert networks == [
        ("vae1", "VAE", "a"),
        ("vae:vae1", "VAE", "a"),
        ("vae_2:vae1", "VAE", "b"),
        ("vae:impress2", "VAE", "a"),
        ("upscale2", "upscale model", "Darker"),
        ("noise8+upscale2", "upscale model", "Darker"),
    ]
    (row,) = rows_of(report, "protection", "protected")
    clean, protected = (from_image(x)[0] for x in (original, image))

    def expected(purify) -> list[float]:
        return [structural_distortion(purify(clean), purify(protected)).item()]

    assert row["cells"]["vae:vae1"] == row["cells"]["vae1"]
    assert row["cells"]["vae:vae1"]["distortion"] == expected(lambda x: vae_round_trip(x, Averages("", 4)))
    assert row["cells"]["vae_2:vae1"]["distortion"] == expected(lambda x: vae_round_trip(x, Averages("", 8)))
    assert row["cells"]["vae:impress2"]["distortion"] == expected(lambda x: impress(x, Averages("", 4), steps=2))
    # Doubled, averaged back: the picture itself, darker.
    assert row["cells"]["upscale2"]["distortion"] == pytest.approx(
        expected(lambda x: (x * 0.9 * 255).round() / 255), abs=1e-6
    )


def test_one_original_for_a_batch_and_names_by_number():
    image = eight_bit(3, 16, 16, 3)
    report = json.loads(run(image[:1], image, image_2=image)["result"][2])
    assert report["protections"] == ["protected", "protected 2"]
    levels = [row["levels"] for row in rows_of(report, "protection", "protected")]
    assert len(levels) == 3
    assert levels[0] == 0 < levels[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": "a, b"}, "not one for each of 1"),
        ({"names": "a, a", "image_2": eight_bit(1, 16, 16, 3)}, "once each"),
        ({"image_2": eight_bit(2, 16, 16, 3)}, "'protected 2' does not fit the originals"),
        ({"purifiers": "gridpure1"}, "needs a denoiser"),
        ({"purifiers": "vae:vae"}, "needs a VAE; wire one"),
        ({"purifiers": "vae_2:impress", "vae": Averages("a")}, "no VAE 'vae_2'; the names are vae"),
        ({"purifiers": "noise8+upscale"}, "needs an upscale model; wire one"),
        ({"upscale_model": Descriptor()}, "upscale_model is wired, but no purifier uses it; add upscale"),
        ({"purifiers": "wash"}, "no purifier or transform"),
        ({"made_against": "blur2"}, "'blur2' is not among"),
        ({"shown": 2}, "no picture 2"),
    ],
)
def test_mistakes_get_one_sentence(changes, sentence):
    image = eight_bit(1, 16, 16, 3)
    with pytest.raises(AntiPureError, match=sentence) as caught:
        run(image, image, **changes)
    assert "\n" not in str(caught.value)


def test_denoisers_that_are_wired_for_nothing_are_refused(tiny):
    image = eight_bit(1, 16, 16, 3)
    with pytest.raises(AntiPureError, match="no purifier uses it; add held_out:gridpure10"):
        run(image, image, purifiers="gridpure1", denoiser=tiny, held_out=tiny)
    with pytest.raises(AntiPureError, match="Only held_out is wired"):
        run(image, image, purifiers="held_out:gridpure1", held_out=tiny)


def test_combined_denoisers_do_not_purify(tiny, make_tiny):
    image = eight_bit(1, 16, 16, 3)
    combined = NODE_CLASS_MAPPINGS["AntiPureCombineDenoisers"]().build(tiny, make_tiny(seed=1), "mean")[0]
    with pytest.raises(AntiPureError, match="for protecting"):
        run(image, image, purifiers="gridpure1", denoiser=combined)


def test_lists_are_checked_before_the_graph_runs():
    assert NODE.VALIDATE_INPUTS(purifiers=PURIFIERS + "\nheld_out:gridpure10, vae2", made_against="vae2, blur1") is True
    assert NODE.VALIDATE_INPUTS(purifiers=None, made_against="what a wire brings") is True
    assert "there is no vae 'vae_5'" in NODE.VALIDATE_INPUTS(purifiers="vae_5:vae", made_against="").lower()
    assert "must lie in 1..16" in NODE.VALIDATE_INPUTS(purifiers="upscale17", made_against="")
    assert "'gridpur5' is no purifier" in NODE.VALIDATE_INPUTS(purifiers="gridpur5", made_against="")
    assert "no denoiser 'other'" in NODE.VALIDATE_INPUTS(purifiers="other:gridpure5", made_against="")
    assert "'median3' is not among" in NODE.VALIDATE_INPUTS(purifiers="gridpure5", made_against="median3")


def test_the_default_list_can_be_read(tiny):
    assert len(parse_purifiers(PURIFIERS, {"denoiser": tiny})) == 11
    shipped = read_workflow("robustness_report")["6"]["inputs"]["purifiers"]
    assert shipped == PURIFIERS + "\nheld_out:gridpure10, train512"


# antipure report ---------------------------------------------------------------------------------------------

FAST = ["--steps", "1", "--purifiers", "gridpure1@1, jpeg75", "--curve", "0"]


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.open(ROOT / "bundled" / "astronaut_face.png").crop((20, 20, 84, 84)).save(path)
    return path


def test_the_workflow_is_the_one_the_command_knows():
    prompt = read_workflow("robustness_report")
    ids = {name: getattr(report_command, name) for name in
           ("PICTURE", "DENOISER", "HELD_OUT_LOADER", "FIRST", "SECOND", "REPORT", "SHEET")}  # fmt: skip
    classes = {name: prompt[node_id]["class_type"] for name, node_id in ids.items()}
    assert classes == {
        "PICTURE": "LoadImage",
        "DENOISER": "AntiPureLoadDenoiser",
        "HELD_OUT_LOADER": "AntiPureLoadDenoiser",
        "FIRST": "AntiPureProtect",
        "SECOND": "AntiPureProtect",
        "REPORT": "AntiPureRobustnessReport",
        "SHEET": "SaveImage",
    }
    assert [prompt[ids[name]]["inputs"]["preset"] for name in ("FIRST", "SECOND")] == list(report_command.PRESETS)
    assert prompt[ids["HELD_OUT_LOADER"]]["inputs"]["denoiser"] == "bundled_judge"
    assert prompt[ids["REPORT"]]["inputs"]["held_out"] == [ids["HELD_OUT_LOADER"], 0]


@pytest.mark.parametrize(
    ("protected", "settings", "names", "held_out"),
    [
        ([], {}, "robust, paper", True),
        ([], {"held_out": "none"}, "robust, paper", False),
        ([], {"presets": ["random"], "purifiers": "gridpure1"}, "random", False),
        (["a/x.png", "b/x.png", "c, d.png", "e.png"], {}, "x, x (2), c d, e", True),
    ],
)
def test_prompts_have_the_protections_asked_for(protected, settings, names, held_out):
    prompt = report_prompt("photo.png", protected, **settings)
    execution_order(prompt)
    for node_id in prompt:
        check_node(prompt, node_id)
    inputs = prompt["6"]["inputs"]
    assert inputs["names"] == names
    assert ("held_out" in inputs) == ("3" in prompt) == held_out
    sources = [prompt[inputs[slot][0]] for slot in report_command.SLOTS if slot in inputs]
    assert len(sources) == len(names.split(", "))
    key = "image" if protected else "preset"
    assert [source["inputs"][key] for source in sources] == (protected or names.split(", "))


def test_report_protects_measures_and_writes(photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", str(photo), *FAST, "--levels", "5", "--preset", "random", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["protections"] == ["random"]
    (row,), (control,) = (rows_of(report, kind, "random") for kind in ("protection", "random"))
    assert row["levels"] == 5
    assert row["cells"] == control["cells"]  # it is its own random control
    assert (out / "report.md").read_text(encoding="utf-8") in printed
    (sheet,) = out.glob("photo_robustness_*.png")
    assert str(sheet) in printed
    assert Image.open(sheet).width == 1480


def test_report_measures_pictures_protected_elsewhere(photo, tmp_path, capsys):
    pixels = np.asarray(Image.open(photo)).astype(int)
    names = []
    for levels in (3, 6):
        names.append(str(tmp_path / f"mine{levels}.png"))
        noise = np.random.default_rng(0).choice([-levels, levels], pixels.shape)
        Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(names[-1])
    command = ["report", str(photo), *names, *FAST, "--seeds", "2", "--json", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert [rows_of(report, "protection", name)[0]["levels"] for name in ("mine3", "mine6")] == [3, 6]
    assert report["seeds"] == [0, 1]


def test_report_looks_through_vaes_and_purifies_with_them(photo, tmp_path, capsys):
    torch.manual_seed(0)
    network = TinyAutoencoder(4, 8)
    names = [str(tmp_path / f"{name}_encoder.pth") for name in ("one", "two")]
    for name in ("one", "two"):
        for half in ("encoder", "decoder"):
            torch.save(getattr(network, half).state_dict(), tmp_path / f"{name}_{half}.pth")
    noise = str(tmp_path / "other.png")
    Image.open(photo).convert("RGB").point(lambda value: 255 - value).save(noise)
    command = ["report", str(photo), noise, "--purifiers", "vae_2:vae, jpeg75", "--curve", "0", "--json"]
    assert main([*command, "--vae", names[0], "--vae", names[1], "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["autoencoders"] == ["one", "two"]
    assert [(c["name"], c["denoiser"]) for c in report["purifiers"]] == [("vae_2:vae1", "two"), ("jpeg75", "")]
    (row,) = rows_of(report, "protection", "other")
    assert row["latent"]["one"] == row["latent"]["two"]
    assert row["latent"]["one"][0] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--vae", "a"] * 5, "5 VAEs are too many"),
        (["--purifiers", "gridpur5"], "no purifier or transform"),
        (["--purifiers", "gridpure5", "--made-against", "jpeg75"], "not among the measured purifiers"),
        (["photo.png"] * 5, "5 protections are too many"),
        (["photo.png", "--preset", "strong"], "not both"),
        (["--held-out", "no.pt"], "no.pt"),
        (["--seeds", "0"], "1..20"),
        (["--preset", "wash"], "wash"),
    ],
)
def test_mistakes_of_the_command_get_one_sentence_and_write_nothing(arguments, sentence, photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", str(photo), *arguments, "--steps", "1", "--levels", "1", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert "\n" not in error
    assert not out.exists()
