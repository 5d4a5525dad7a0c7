"""What trainers and sites make of a picture, against their own libraries, and the sizes against their own code."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import from_uint8, round_8bit
from antipure.methods.purification.saving import webp
from antipure.methods.purification.transforms import parse_transform
from antipure.methods.purification.views import GEOMETRIES, Geometry
from PIL import Image

# (transform, picture, resized to, cut to), width first: what the trainers' own functions return for that size, run
# 2026-11-26: sd-scripts' BucketManager (sides 256..1024 at 512, 512..2048 at 1024), ai-toolkit's
# get_bucket_for_image_size with its rounding, OneTrainer's AspectBucketing in steps of 64.
SIZES = [
    ("train512", (512, 512), (512, 512), (512, 512)),
    ("train512", (640, 480), (597, 448), (576, 448)),
    ("train512", (1080, 1920), (384, 683), (384, 640)),
    ("train512", (4096, 4096), (512, 512), (512, 512)),
    ("train512", (1000, 667), (640, 427), (640, 384)),
    ("train512", (57, 40), (638, 448), (576, 448)),
    ("train512", (3000, 500), (1536, 256), (1024, 256)),
    ("train512", (1, 90), (256, 23040), (256, 1024)),
    ("train1024", (300, 400), (896, 1195), (896, 1152)),
    ("train1024", (832, 1216), (832, 1216), (832, 1216)),
    ("train1024", (1920, 1080), (1365, 768), (1344, 768)),
    ("trainbicubic512", (512, 512), (512, 512), (512, 512)),
    ("trainbicubic512", (640, 480), (598, 448), (576, 448)),
    ("trainbicubic512", (1080, 1920), (384, 683), (384, 640)),
    ("trainbicubic512", (4096, 4096), (512, 512), (512, 512)),
    ("trainbicubic512", (1000, 667), (672, 448), (576, 448)),
    ("trainbicubic512", (57, 40), (92, 64), (64, 64)),
    ("trainbicubic512", (3000, 500), (1280, 214), (1280, 192)),
    ("trainbicubic512", (1, 90), (64, 5760), (64, 64)),
    ("trainbicubic1024", (300, 400), (320, 427), (320, 384)),
    ("trainbicubic1024", (832, 1216), (832, 1216), (832, 1216)),
    ("trainbicubic1024", (1920, 1080), (1366, 768), (1344, 768)),
    ("trainbilinear512", (512, 512), (512, 512), (512, 512)),
    ("trainbilinear512", (640, 480), (597, 448), (576, 448)),
    ("trainbilinear512", (1080, 1920), (396, 704), (384, 704)),
    ("trainbilinear512", (4096, 4096), (512, 512), (512, 512)),
    ("trainbilinear512", (1000, 667), (672, 448), (640, 448)),
    ("trainbilinear512", (57, 40), (640, 449), (640, 448)),
    ("trainbilinear512", (3000, 500), (1536, 256), (1024, 256)),
    ("trainbilinear512", (1, 90), (256, 23040), (256, 1024)),
    ("trainbilinear1024", (300, 400), (896, 1195), (896, 1152)),
    ("trainbilinear1024", (832, 1216), (876, 1280), (832, 1280)),
    ("trainbilinear1024", (1920, 1080), (1365, 768), (1344, 768)),
]


@pytest.mark.parametrize(("text", "picture", "resized", "bucket"), SIZES)
def test_the_trainers_own_sizes(text, picture, resized, bucket):
    (name, value), *_ = parse_transform(text).steps
    geometry = GEOMETRIES[name](picture[1], picture[0], value)
    assert (geometry.width, geometry.height) == resized
    left, top = ((resized[i] - bucket[i]) // 2 for i in (0, 1))
    assert geometry.window == (top, left, bucket[1], bucket[0])
    assert geometry.size == (bucket[1], bucket[0])


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", ["train", "trainbicubic", "trainbilinear"])
def test_a_bucket_holds_about_the_area_and_the_aspect(name, seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = (int(v) for v in torch.randint(700, 2800, (2,), generator=generator))
    geometry = GEOMETRIES[name](height, width, 768)
    rows, columns = geometry.size
    assert rows % 64 == columns % 64 == 0
    assert 0.75 * 768**2 <= rows * columns <= 1.1 * 768**2
    assert abs(np.log((columns / rows) / (width / height))) < np.log(1.2)
    # Resized by one factor, and cut in one direction only.
    assert geometry.height / height == pytest.approx(geometry.width / width, rel=2e-3)
    assert geometry.height == rows or geometry.width == columns or name == "trainbicubic"
    assert (geometry.height - rows, geometry.width - columns) >= (0, 0)


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    """Shapes with hard edges, at which kernels overshoot, and noise; 8-bit."""
    generator = torch.Generator().manual_seed(height + width)
    coarse = torch.rand(batch, 3, 6, 7, generator=generator).round()
    x = F.interpolate(coarse, (height, width), mode="nearest")
    return ((x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1) * 255).round() / 255


def array(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().byte().permute(1, 2, 0).numpy()


def cut(a: np.ndarray, rows: int, columns: int) -> np.ndarray:
    top, left = (a.shape[0] - rows) // 2, (a.shape[1] - columns) // 2
    return a[top : top + rows, left : left + columns].astype(int)


def apart(found: torch.Tensor, expected: np.ndarray) -> np.ndarray:
    return np.abs(array(found).astype(int) - expected.astype(int))


# Whole and broken factors, one axis only, one pixel less.
@pytest.mark.parametrize("target", [(40, 60), (60, 90), (43, 71), (119, 179), (7, 180), (120, 11), (1, 1), (120, 180)])
def test_area_is_opencvs(target):
    cv2 = pytest.importorskip("cv2")
    x = picture(120, 180)
    found = Geometry(*target, "area", (0, 0, *target))(x)
    expected = cv2.resize(array(x[0]), target[::-1], interpolation=cv2.INTER_AREA)
    assert apart(found[0], expected).max() <= 1
    assert apart(found[0], expected).mean() < 0.1


# Both sides grow or both shrink, as all trainers have it: for the rest the Pillows differ in which pass comes first.
@pytest.mark.parametrize("target", [(40, 60), (43, 71), (250, 370), (119, 20), (120, 97), (33, 180), (1, 1)])
@pytest.mark.parametrize(("kernel", "filter_"), [("lanczos", Image.LANCZOS), ("bicubic", Image.BICUBIC)])
def test_lanczos_and_bicubic_are_pillows(kernel, filter_, target):
    x = picture(120, 180)
    found = Geometry(*target, kernel, (0, 0, *target))(x)
    expected = np.asarray(Image.fromarray(array(x[0])).resize(target[::-1], filter_))
    differences = apart(found[0], expected)
    assert (differences > 1).mean() < 2e-5  # two roundings that both fell to another side of the half
    assert differences.max() <= 2
    assert differences.mean() < 0.005


@pytest.mark.parametrize("target", [(40, 60), (43, 71), (250, 370), (119, 360)])
def test_bilinear_is_torchs_antialias(target):
    """What torchvision's `Resize(antialias=True)` calls for tensors."""
    x = picture(120, 180)
    found = Geometry(*target, "bilinear", (0, 0, *target))(x)
    expected = F.interpolate(x, target, mode="bilinear", antialias=True)
    assert float((found - expected).abs().max()) <= 0.504 / 255


def test_bilinear_is_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms")
    x = picture(120, 180)
    expected = transforms.Resize((43, 71), transforms.InterpolationMode.BILINEAR, antialias=True)(x)
    found = Geometry(43, 71, "bilinear", (0, 0, 43, 71))(x)
    assert float((found - expected).abs().max()) <= 0.504 / 255


SMALLER = [(50, 40), (97, 83), (60, 80), (97, 80), (60, 83)]


@pytest.mark.parametrize(
    ("kernel", "size"),
    [(k, s) for k in ("area", "lanczos", "bicubic", "bilinear") for s in SMALLER]
    + [(k, (150, 300)) for k in ("lanczos", "bicubic", "bilinear")],
)
def test_a_window_is_cut_out_of_the_whole(kernel, size):
    x = picture(97, 83, batch=2)
    whole = Geometry(*size, kernel, (0, 0, *size))(x)
    window = (7, 11, 40, 23)
    part = Geometry(*size, kernel, window)(x)
    assert torch.allclose(part, whole[..., 7:47, 11:34], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(700, 1000), (300, 260), (128, 128), (512, 512)])
def test_train_is_what_kohya_and_musubi_call(height, width):
    cv2 = pytest.importorskip("cv2")
    x = picture(height, width)
    found = parse_transform("train512")(x)
    rows, columns = found.shape[-2:]
    scale = max(rows / height, columns / width)
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    if scale > 1:
        resized = np.asarray(Image.fromarray(array(x[0])).resize(size, Image.LANCZOS))
    else:
        resized = cv2.resize(array(x[0]), size, interpolation=cv2.INTER_AREA)
    assert apart(found[0], cut(resized, rows, columns)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(700, 1000), (300, 260)])
def test_train_bicubic_is_what_ai_toolkit_calls(height, width):
    x = picture(height, width)
    found = parse_transform("trainbicubic512")(x)
    rows, columns = found.shape[-2:]
    scale = max(rows / height, columns / width)
    size = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
    resized = np.asarray(Image.fromarray(array(x[0])).resize(size, Image.BICUBIC))
    assert apart(found[0], cut(resized, rows, columns)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(700, 1000), (300, 260)])
def test_train_bilinear_is_what_onetrainer_calls(height, width):
    x = picture(height, width)
    found = parse_transform("trainbilinear512")(x)
    rows, columns = found.shape[-2:]
    scale = max(rows / height, columns / width)
    whole = F.interpolate(x, (round(height * scale), round(width * scale)), mode="bilinear", antialias=True)
    top, left = (whole.shape[-2] - rows) // 2, (whole.shape[-1] - columns) // 2
    assert float((found - whole[..., top : top + rows, left : left + columns]).abs().max()) <= 0.504 / 255


@pytest.mark.parametrize("size", [(9, 3000), (3000, 9), (1, 20000)])
@pytest.mark.parametrize("name", ["train", "trainbicubic", "trainbilinear"])
def test_slivers_take_no_more_memory_than_their_bucket(name, size):
    """Resized whole, 1×20,000 pixels at train1024 would be 10 million columns."""
    x = picture(*size)
    found = parse_transform(f"{name}512")(x)
    assert found.shape[-1] % 64 == found.shape[-2] % 64 == 0
    assert max(found.shape[-2:]) <= max(1024, *size)


def test_crop_is_the_middle_and_untouched():
    x = picture(50, 81)
    assert torch.equal(parse_transform("crop0.5")(x), x[..., 12:37, 20:60])
    assert torch.equal(parse_transform("crop1")(x), x)


def test_shrink_is_the_mean_over_blocks():
    x = picture(48, 60)
    found, expected = parse_transform("shrink0.5")(x), F.avg_pool2d(x.double(), 2)
    assert float((found - expected).abs().max()) <= 0.501 / 255
    assert torch.equal(found, round_8bit(found))


def test_the_long_side_is_limited_and_small_pictures_stay():
    x = picture(90, 120)
    expected = np.asarray(Image.fromarray(array(x[0])).resize((80, 60), Image.LANCZOS))
    assert apart(parse_transform("long80")(x)[0], expected).max() <= 1
    assert torch.equal(parse_transform("long120")(x), x)
    assert torch.equal(parse_transform("long1080")(x), x)


@pytest.mark.parametrize("quality", [30, 80, 100])
def test_webp_is_pillows_for_every_picture_of_the_batch(quality):
    x = picture(33, 40, batch=2)
    for one, found in zip(x, webp(x, quality), strict=True):
        file = io.BytesIO()
        Image.fromarray(array(one)).save(file, format="WEBP", quality=quality)
        assert torch.equal(found, from_uint8(np.asarray(Image.open(file).convert("RGB")))[0])


def test_sides_that_webp_does_not_know_are_refused():
    with pytest.raises(AntiPureError, match="at most 16383"):
        webp(torch.zeros(1, 3, 1, 16384))


@pytest.mark.parametrize(
    ("preset", "spelt_out"),
    [("upload80", "long80+jpeg85"), ("uploadwebp80", "long80+webp80"), ("preview80", "long80+jpeg75")],
)
def test_presets_are_what_their_description_says(preset, spelt_out):
    x = picture(90, 120)
    assert torch.equal(parse_transform(preset)(x), parse_transform(spelt_out)(x))
    assert torch.equal(parse_transform(preset).view(x), parse_transform("long80")(x))


def test_compositions_change_the_size_step_by_step():
    x = picture(90, 120)
    transform = parse_transform("jpeg75+long80+blur1+crop0.5")
    assert str(transform) == "jpeg75+long80+blur1+crop0.5"
    assert transform.changes_size
    assert transform(x).shape == (1, 3, 30, 40)
    assert torch.equal(transform.view(x), parse_transform("long80+crop0.5")(x))
    assert not parse_transform("jpeg75+resize0.5+webp").changes_size
    assert parse_transform("resize0.5").view(x) is x


def test_views_take_any_number_of_channels():
    x = picture(90, 120)
    transform = parse_transform("long80+crop0.5")
    assert torch.equal(transform.view(x[:, :1]), transform.view(x)[:, :1])
    assert transform.view(torch.ones(2, 4, 90, 120)).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("kernel", "size"),
    [(k, (5, 4)) for k in ("area", "lanczos", "bicubic", "bilinear")]
    + [(k, (9, 13)) for k in ("lanczos", "bicubic", "bilinear")],
)
def test_gradients_are_true(kernel, size):
    geometry = Geometry(*size, kernel, (1, 1, size[0] - 2, size[1] - 1))
    x = torch.rand(1, 2, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: geometry(x, rounded=False), x)


@pytest.mark.parametrize(
    "text", ["train512", "trainbicubic128", "trainbilinear128", "shrink0.4", "crop0.7", "upload40"]
)
def test_the_gradient_is_the_unrounded_ones(text):
    """Rounding passes it straight through: away from 0 and 1, at which kernels overshoot, it is as none."""
    x = (0.4 + 0.2 * torch.rand(1, 3, 50, 60, generator=torch.Generator().manual_seed(1))).requires_grad_()
    transform = parse_transform(text)
    found = transform(x)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (rounded,) = torch.autograd.grad((found * direction).sum(), x)
    (name, value), *_ = transform.steps
    plain = GEOMETRIES[name](50, 60, value)(x, rounded=False)
    (true,) = torch.autograd.grad((plain * direction).sum(), x)
    assert torch.allclose(rounded, true, atol=1e-6)
    assert true.abs().max() > 0
