"""BRISQUE against its library and against scipy's fits, CLIP-IQA against torchmetrics and its formula, and the node."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics import brisque
from antipure.methods.metrics.brisque import features, load_brisque, read_svm
from antipure.methods.metrics.clip_iqa import PROMPTS, ClipIqa
from antipure.nodes import NODE_CLASS_MAPPINGS
from PIL import Image
from scipy import ndimage, optimize, special
from skimage.color import rgb2gray
from sklearn.svm import SVR

ROOT = Path(__file__).resolve().parents[2]
PICTURES = {path.name: path for folder in ("bundled", "benchmarks/pictures") for path in (ROOT / folder).glob("*.png")}
# What brisque 0.2.0 says of them (with numpy 2.2, scipy 1.15, OpenCV 5): BRISQUE(url=False).score(array).
LIBRARY = json.loads((ROOT / "tests" / "data" / "brisque.json").read_text())
installed = pytest.mark.skipif(find_spec("brisque") is None, reason="pip install --no-deps brisque")


def levels(name: str) -> np.ndarray:
    """H×W×3 in 8 bits: a picture of this repository with an optional crop behind it, or random numbers."""
    if name == "random":
        return np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    name, _, crop = name.partition(":")
    height, width = map(int, crop.split("x")) if crop else (None, None)
    return np.asarray(Image.open(PICTURES[name]).convert("RGB"))[:height, :width].copy()


def picture(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def fit(x: np.ndarray) -> tuple[float, float, float, float]:
    """Asymmetric generalised Gaussian by moments: shape, mean, left and right variance, by scipy's root finder."""
    left, right = (x[x < 0] ** 2).mean(), (x[x >= 0] ** 2).mean()
    g = math.sqrt(left / right)
    wanted = np.abs(x).mean() ** 2 / (x**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2

    def excess(a):
        return special.gamma(2 / a) ** 2 / special.gamma(1 / a) / special.gamma(3 / a) - wanted

    a = optimize.brentq(excess, 0.1, 20, xtol=1e-13)
    mean = (math.sqrt(right) - math.sqrt(left)) * special.gamma(2 / a)
    return a, mean / math.sqrt(special.gamma(1 / a) * special.gamma(3 / a)), left, right


def slow_features(array: np.ndarray) -> list[float]:
    """The 18 of one scale, with scipy's filters."""

    def blur(x):
        return ndimage.gaussian_filter(x, 7 / 6, radius=3, mode="constant")

    mean = blur(array)
    x = (array - mean) / (np.sqrt(np.abs(blur(array**2) - mean**2)) + 1 / 255)
    a, _, left, right = fit(x.ravel())
    found = [a, (left + right) / 2]
    h, w = x.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        products = [x[i, j] * x[i + dy, j + dx] for i in range(h - dy) for j in range(max(0, -dx), w - max(0, dx))]
        found += fit(np.array(products))
    return found


@pytest.mark.parametrize("name", ["random", "boats.png", "house.png", "astronaut_face.png"])
def test_features_are_natural_scene_statistics_fitted_by_scipy(name):
    array = levels(name)
    grey = rgb2gray(array)
    found = features(picture(array))
    assert found.shape == (1, 36)
    np.testing.assert_allclose(found[0, :18].numpy(), slow_features(grey), rtol=1e-7)
    # Half-way between pixels the cubic kernel has four fixed weights.
    kernel = np.array([-3, 19, 19, -3]) / 32
    half = grey
    for axis in (0, 1):
        half = np.apply_along_axis(lambda v: np.convolve(np.pad(v, 2, "edge"), kernel, "valid")[1:-1:2], axis, half)
    np.testing.assert_allclose(found[0, 18:].numpy(), slow_features(half), rtol=1e-7)


@installed
@pytest.mark.parametrize("name", LIBRARY)
def test_brisque_is_the_librarys_score(name):
    """Odd sizes, too: OpenCV halves 97 to 48 and 95 to 48."""
    model = load_brisque()
    assert model.name.startswith("BRISQUE, library brisque ")
    if model.name.endswith(" 0.2.0"):
        assert model(picture(levels(name))).item() == pytest.approx(LIBRARY[name], abs=1e-6)


@installed
def test_brisque_rises_with_noise_and_blur_and_reads_each_picture_alone():
    array = levels("alps.png").astype(float)
    rng = np.random.default_rng(0)
    noisy = [array + s * rng.standard_normal(array.shape) for s in (0, 10, 20, 40)]
    blurred = [ndimage.gaussian_filter(array, (s, s, 0)) for s in (0, 1, 2, 4)]
    model = load_brisque()
    for series in (noisy, blurred):
        batch = torch.cat([picture(x.clip(0, 255).round().astype(np.uint8)) for x in series])
        scores = model(batch).tolist()
        assert scores == sorted(scores)
        assert scores[-1] > scores[0] + 20
        assert scores[1] == pytest.approx(model(batch[1:2]).item(), abs=1e-9)
        jitter = 0.4 / 255 * (torch.rand(batch.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)
        assert model(batch + jitter).tolist() == pytest.approx(scores, abs=1e-9), "rounded to 8 bits first"


def write_package(folder: Path, support: str, ranges: object) -> Path:
    (folder / "brisque" / "models").mkdir(parents=True)
    (folder / "brisque" / "__init__.py").write_text("raise RuntimeError('the package is read, never imported')")
    (folder / "brisque" / "models" / "svm.txt").write_text(support)
    (folder / "brisque" / "models" / "normalize.pickle").write_bytes(pickle.dumps(ranges))
    return folder


def trained() -> tuple[SVR, str]:
    """A regression of scikit-learn's, and the same as a libsvm file."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 36)) * (rng.random((60, 36)) > 0.2)  # zeros are left out of the file
    svr = SVR(gamma=0.05, C=100).fit(x, 50 + 20 * x[:, 0] * x[:, 1] + 10 * x[:, 2])
    lines = [f"svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\nrho {-svr.intercept_[0]!r}\nSV"]
    for weight, row in zip(svr.dual_coef_[0], svr.support_vectors_, strict=True):
        lines.append(f"{weight!r} " + " ".join(f"{i + 1}:{v!r}" for i, v in enumerate(row) if v))
    return svr, "\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n"


RANGES = {"min_": [-1.0] * 36, "max_": [3.0] * 36}


@pytest.fixture
def package(monkeypatch, tmp_path):
    """package(support, ranges): a stand-in for the installed `brisque`."""
    load_brisque.cache_clear()

    def write(support: str, ranges: object = RANGES) -> None:
        monkeypatch.syspath_prepend(write_package(tmp_path, support, ranges))

    yield write
    load_brisque.cache_clear()


def test_the_regression_is_scikit_learns(package):
    svr, text = trained()
    package(text)
    model = load_brisque()
    x = torch.rand(5, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = (x.numpy() + 1) / 2 - 1
    np.testing.assert_allclose(model.score(x).numpy(), svr.predict(scaled), rtol=1e-10)
    assert "brisque" not in sys.modules


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("support", "ranges"),
    [
        ("svm_type c_svc\nkernel_type rbf\nSV\n1 1:2\n", RANGES),
        ("svm_type epsilon_svr\nkernel_type rbf\ngamma 1\nrho 0\nSV\n1 37:2\n", RANGES),
        ("no model", RANGES),
        (None, {"min_": [0.0] * 35, "max_": [1.0] * 35}),
        (None, {"min_": [0.0] * 36}),
        (None, {"min_": Evil(), "max_": [1.0] * 36}),
    ],
)
def test_a_damaged_package_is_named_and_never_run(package, capsys, support, ranges):
    package(trained()[1] if support is None else support, ranges)
    with pytest.raises(AntiPureError, match="no model that can be read.*pip install --no-deps brisque"):
        load_brisque()
    assert capsys.readouterr().out == ""


def test_flat_and_small_pictures():
    both = torch.cat([torch.full((1, 3, 40, 40), 0.5), picture(levels("random"))[..., :40, :40]])
    found = features(both)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()
    with pytest.raises(AntiPureError, match="32×32"):
        features(torch.rand(1, 3, 31, 40))


def test_read_svm_counts_its_vectors(tmp_path):
    (tmp_path / "svm.txt").write_text(trained()[1])
    vectors, weights, header = read_svm(tmp_path / "svm.txt")
    assert vectors.shape == (len(weights), brisque.FEATURES)
    assert header["gamma"] == "0.05"


# CLIP-IQA ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A tiny CLIP of random weights with 24-px pictures, and a tokenizer of single bytes."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("encoders") / "tiny-clip"
    folder.mkdir()
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = [chr(code) for code in range(33, 127)]
    words = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters), *marks])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\no o\n")
    words["oo"] = len(words)
    (folder / "vocab.json").write_text(json.dumps(words))
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": len(words),
            "max_position_embeddings": 30,
            "bos_token_id": words[marks[0]],
            "eos_token_id": words[marks[1]],
            "pad_token_id": words[marks[1]],
        },
        vision_config={**sizes, "image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": 24, "width": 24},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48, 0.45, 0.4],
        "image_std": [0.27, 0.26, 0.25],
        "resample": 3,
        "size": {"shortest_edge": 24},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Real ones and a random one, 128×128, cut to 128×96."""
    real = [picture(levels(name)) for name in ("boats.png", "raccoon.png", "astronaut_face.png")]
    random = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return ((torch.cat([*real, random]) * 255).round() / 255)[..., :96]


def test_clip_iqa_is_its_formula_over_transformers_own_processor(clip, pictures):
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.image_utils import PILImageResampling

    model = CLIPModel.from_pretrained(clip).eval()
    tokens = CLIPTokenizer.from_pretrained(clip)(list(PROMPTS), padding=True, return_tensors="pt")
    assert PROMPTS == ("Good photo.", "Bad photo.")
    expected = []
    for one in pictures:
        image = Image.fromarray((one.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        small = image.resize((24, 32), PILImageResampling.BICUBIC).crop((0, 4, 24, 28))
        array = (np.asarray(small) / 255 - np.array([0.48, 0.45, 0.4])) / np.array([0.27, 0.26, 0.25])
        pixels = torch.from_numpy(array).float().permute(2, 0, 1)[None]
        with torch.no_grad():
            # model(...) itself divides by the norms and multiplies with e^logit_scale
            logits = model(pixel_values=pixels, **tokens).logits_per_image[0] / model.logit_scale.exp()
        good, bad = 100 * logits.double().numpy()
        expected.append(good - bad)
    found = ClipIqa(clip)(pictures)
    assert found.shape == (4,)
    assert max(expected) - min(expected) > 0.5
    # softmax's inverse; Pillow resizes in integers: half a level of each pixel
    np.testing.assert_allclose(torch.logit(found.double()).numpy(), expected, atol=0.05)
    torch.testing.assert_close(ClipIqa(clip)(pictures[2:3]), found[2:3], rtol=1e-4, atol=1e-5)


def test_clip_iqa_is_torchmetrics(clip, pictures, monkeypatch):
    """On pictures of the model's own size, so that nothing is resized.

    torchmetrics hands its values on to a processor that divides by 255 itself, so it gets 0..255 here.
    """
    from torchmetrics.functional.multimodal import clip_iqa
    from transformers import CLIPModel, CLIPProcessor

    class Features:
        """transformers 5 wraps what torchmetrics 1.9 takes as a tensor."""

        def __init__(self, model):
            self.model = model

        def to(self, device):
            return self

        def get_text_features(self, *inputs):
            return plain(self.model.get_text_features(*inputs))

        def get_image_features(self, *inputs):
            return plain(self.model.get_image_features(*inputs))

    def plain(found):
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    loaded = Features(CLIPModel.from_pretrained(clip).eval()), CLIPProcessor.from_pretrained(clip)
    monkeypatch.setattr(clip_iqa, "_get_clip_iqa_model_and_processor", lambda name: loaded)  # it knows names only
    small = pictures[..., 40:64, 40:64]
    expected = clip_iqa.clip_image_quality_assessment((small * 255).round(), str(clip))
    torch.testing.assert_close(ClipIqa(clip)(small), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(missing_ok=True), None),
        (lambda folder: [p.unlink() for p in folder.glob("*.json") if "config.json" not in p.name], "no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
        (lambda folder: (folder / "config.json").unlink(), "no encoder in"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "is not valid JSON"),
    ],
)
def test_what_is_missing_in_a_clip_folder_is_named(clip, tmp_path, change, sentence):
    folder = shutil.copytree(clip, tmp_path / "clip")
    change(folder)
    if sentence is None:  # its vocab.json and merges.txt serve as well
        ClipIqa(folder)
        return
    with pytest.raises(AntiPureError, match=sentence):
        ClipIqa(folder)


def test_an_encoder_without_texts_is_no_clip(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(AntiPureError, match="holds a ViTModel; CLIP-IQA needs a CLIP"):
        ClipIqa(tmp_path / "vit")


# The node ------------------------------------------------------------------------------------------------------


def measure(**inputs) -> tuple[float, float, str]:
    with torch.inference_mode():
        inputs = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        return NODE_CLASS_MAPPINGS["AntiPureQualityMetrics"]().measure(**inputs)["result"]


def test_the_node_gives_both_and_sets_them_beside_the_reference(clip, pictures, package):
    package(trained()[1])
    image = pictures.permute(0, 2, 3, 1)
    found, score, report = measure(image=image[:2], clip=str(clip), reference=image[2:3, :64, :64])
    expected, near = load_brisque()(pictures[:2]).mean(), ClipIqa(clip)(pictures[:2])
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert score == pytest.approx(float(near.mean()), abs=1e-5)
    other = load_brisque()(pictures[2:3, :, :64, :64])
    for line in ("n = 2 and 1 pictures", "CLIP-IQA, tiny-clip", f"BRISQUE {found:.2f}", f"CLIP-IQA {score:.4f}"):
        assert line in report.splitlines()
    assert f"reference {float(other):.2f}" in report.splitlines()
    assert f"change {found - float(other):+.2f}" in report.splitlines()
    assert f"picture 2: {float(near[1]):.4f}" in report.splitlines()


def test_what_is_missing_is_said_in_one_sentence_and_the_rest_goes_on(clip, pictures, package, monkeypatch):
    image = pictures[:1].permute(0, 2, 3, 1)
    monkeypatch.setattr(brisque, "find_spec", lambda name: None)
    found, score, report = measure(image=image, clip=str(clip))
    assert math.isnan(found)
    assert 0 < score < 1
    missing = next(line for line in report.splitlines() if line.startswith("BRISQUE"))
    assert missing.endswith("install it with: pip install --no-deps brisque")
    monkeypatch.undo()
    load_brisque.cache_clear()
    package(trained()[1])
    found, score, report = measure(image=image, clip="none")
    assert math.isnan(score)
    assert math.isfinite(found)
    missing = next(line for line in report.splitlines() if line.startswith("CLIP-IQA"))
    assert "into models/antipure_encoders" in missing
    found, score, report = measure(image=torch.full((1, 40, 40, 3), 0.5), clip="none")
    assert math.isnan(found)
    assert "BRISQUE none: the picture is flat" in report.splitlines()
    small = measure(image=image[:, :20], clip=str(clip))
    assert math.isnan(small[0])
    assert "32×32" in small[2]
    assert math.isfinite(small[1])
