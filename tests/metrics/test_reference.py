"""Every metric against an independent implementation, on random and on this repository's real pictures.

| metric | set against | tolerance |
|---|---|---|
| PSNR | scikit-image | 1e-3 dB |
| SSIM, structural distortion | scipy's Gaussian filter in float64 | 2e-4 |
| detail ratio | scipy's DCT | 1e-3, relative |
| largest change, error map | numpy's integers, scipy's box filter | exact; 1e-3 levels |
| band energy, radial spectrum | numpy's FFT | 1e-6, relative |
| FID | scipy's matrix square root, torchmetrics | 1e-5, relative |
| KID | torchmetrics' polynomial MMD | 1e-6, relative |
| diversity of features | scikit-learn's cosine distances | 1e-6 |
| LPIPS | its formula with plain convolutions | 1e-3, relative |
| face alignment | scikit-image's warp | 1 level |

ISM and FDFR are in test_face_metrics.py, BRISQUE and CLIP-IQA in test_quality.py, InceptionV3 in test_set_metrics.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.methods.metrics import distribution as set_metrics
from antipure.methods.metrics import image as metrics
from antipure.methods.metrics.faces import TEMPLATE, align
from antipure.methods.metrics.lpips import AlexNet, Lpips, linear_heads
from antipure.methods.pictures import round_8bit
from PIL import Image
from scipy.fft import dctn
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.metrics import peak_signal_noise_ratio
from skimage.transform import SimilarityTransform, warp
from sklearn.metrics.pairwise import cosine_distances

ROOT = Path(__file__).resolve().parents[2]
REAL = sorted([*ROOT.glob("bundled/*.png"), *ROOT.glob("benchmarks/pictures/*.png")])


def estimated(points, target) -> SimilarityTransform:
    """scikit-image's fit; before 0.26, the newest for Python 3.10, by its older name."""
    if hasattr(SimilarityTransform, "from_estimate"):
        return SimilarityTransform.from_estimate(points, target)
    found = SimilarityTransform()
    assert found.estimate(points, target)
    return found


def real(path: Path, height: int | None = None, width: int | None = None) -> torch.Tensor:
    array = np.asarray(Image.open(path).convert("RGB"))[:height, :width].copy()
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def random(seed: int, height: int = 72, width: int = 88) -> torch.Tensor:
    return round_8bit(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)))


def noisy(x: torch.Tensor, levels: float) -> torch.Tensor:
    return round_8bit(x + levels / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))


def blurred(x: torch.Tensor) -> torch.Tensor:
    return round_8bit(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


PAIRS = {"two random pictures": (random(0), random(1)), "random, noisy": (random(0), noisy(random(0), 12))}
for number, path in enumerate(REAL):
    original = real(path, 120 - number, 104 + number)  # sizes that are no multiples of anything
    PAIRS[f"{path.stem}, noisy"] = (original, noisy(original, 3 + number))
    PAIRS[f"{path.stem}, blurred"] = (original, blurred(original))

each_pair = pytest.mark.parametrize("pair", PAIRS)


def arrays(pair: str) -> tuple[np.ndarray, np.ndarray]:
    """H×W×3 in float64, k/255 exactly."""
    return tuple(np.rint(x[0].permute(1, 2, 0).double().numpy() * 255) / 255 for x in PAIRS[pair])


def test_there_are_real_pictures():
    assert len(REAL) >= 12


@each_pair
def test_psnr(pair):
    expected = peak_signal_noise_ratio(*arrays(pair), data_range=1)
    assert metrics.psnr(*PAIRS[pair]).item() == pytest.approx(expected, abs=1e-3)


@each_pair
def test_ssim_and_structural_distortion(pair):
    """Wang et al. 2004, eq. 13: an 11×11 Gaussian window of 1.5. SSIM is over the whole picture, mirrored outside;
    the contrast-structure term over windows inside."""
    whole, inside = [], []
    a, b = arrays(pair)
    for x, y in zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), strict=True):
        mx, my, xx, yy, xy = (gaussian_filter(v, 1.5, radius=5, mode="mirror") for v in (x, y, x * x, y * y, x * y))
        structure = (2 * (xy - mx * my) + 0.03**2) / (xx - mx**2 + yy - my**2 + 0.03**2)
        whole.append((2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2) * structure)
        inside.append(structure[5:-5, 5:-5])
    assert metrics.ssim(*PAIRS[pair]).item() == pytest.approx(np.mean(whole), abs=2e-4)
    assert metrics.structural_distortion(*PAIRS[pair]).item() == pytest.approx(1 - np.mean(inside), abs=2e-4)


@each_pair
def test_detail_ratio(pair):
    def energy(x):
        h, w = x.shape[0] // 8 * 8, x.shape[1] // 8 * 8
        blocks = x[:h, :w].reshape(h // 8, 8, w // 8, 8, 3).transpose(0, 2, 4, 1, 3)
        coefficients = dctn(blocks, axes=(3, 4), norm="ortho")
        coefficients[..., :4, :4] = 0
        return (coefficients**2).sum((3, 4)).mean() / 48

    a, b = arrays(pair)
    expected = (energy(b) + 1e-8) / (energy(a) + 1e-8)
    assert metrics.detail_ratio(*PAIRS[pair]).item() == pytest.approx(expected, rel=1e-3)


@each_pair
def test_largest_change_and_error_map(pair):
    a, b = (np.rint(x * 255).astype(int) for x in arrays(pair))
    assert metrics.linf_levels(*PAIRS[pair]).item() == np.abs(a - b).max()
    squares = ((a - b) ** 2).mean(2)
    # zeros outside, divided by how many lie inside
    inside = uniform_filter(np.ones_like(squares), 5, mode="constant")
    expected = np.sqrt(uniform_filter(squares, 5, mode="constant").clip(0) / inside)
    np.testing.assert_allclose(metrics.error_map(*PAIRS[pair])[0, 0].numpy(), expected, atol=1e-3)


@each_pair
def test_spectra(pair):
    change = PAIRS[pair][1] - PAIRS[pair][0]
    array = change[0].double().numpy()
    power = (np.abs(np.fft.fft2(array)) ** 2).sum(0) / array[0].size ** 2
    radius = np.hypot(np.fft.fftfreq(array.shape[1])[:, None], np.fft.fftfreq(array.shape[2])[None])
    for name, share in metrics.band_energy(change).items():
        low, high = {"low": (0, 1 / 16), "mid": (1 / 16, 1 / 4), "high": (1 / 4, 1)}[name]
        expected = power[(radius >= low) & (radius < high)].sum() / power.sum()
        assert share.item() == pytest.approx(expected, rel=1e-6)
    expected = [power[(radius >= i / 16) & (radius < (i + 1) / 16)].mean() for i in range(8)]
    np.testing.assert_allclose(metrics.radial_spectrum(change, bins=8)[0].numpy(), expected, rtol=1e-6)


# Sets ------------------------------------------------------------------------------------------------------------


def colours(pictures: list[torch.Tensor]) -> torch.Tensor:
    """N×12 features of 40-px tiles: mean and deviation of colours, and of their differences across and down."""
    rows = []
    for x in pictures:
        for tile in x.unfold(2, 40, 20).unfold(3, 40, 20)[0].flatten(1, 2).movedim(1, 0):
            across, down = tile.diff(dim=2), tile.diff(dim=1)
            rows.append(torch.cat([tile.mean((1, 2)), *(v.std((1, 2)) for v in (tile, across, down))]))
    return torch.stack(rows)


SETS = {
    "real": lambda: (colours([real(p) for p in REAL[::2]]), colours([real(p) for p in REAL[1::2]])),
    "real, noisy": lambda: (colours([real(p) for p in REAL]), colours([noisy(real(p), 10) for p in REAL])),
    "random": lambda: (colours([random(i) for i in range(9)]), colours([blurred(random(i)) for i in range(20, 29)])),
}
each_set = pytest.mark.parametrize("name", SETS)


@each_set
def test_fid(name):
    from torchmetrics.image.fid import _compute_fid

    a, b = SETS[name]()
    x, y = a.double().numpy(), b.double().numpy()
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    found = set_metrics.frechet_distance(a, b)
    assert found == pytest.approx(expected, rel=1e-5)
    first, second = (v.double() for v in (a, b))
    theirs = _compute_fid(first.mean(0), first.T.cov(), second.mean(0), second.T.cov())
    assert found == pytest.approx(float(theirs), rel=1e-5)
    assert found > 1e-4


@each_set
def test_kid(name):
    from torchmetrics.image.kid import poly_mmd

    a, b = (x[: 2 * (len(x) // 2)] for x in SETS[name]())
    count = min(len(a), len(b))  # theirs takes equal numbers only
    a, b = a[:count], b[-count:]
    found, deviation = set_metrics.kernel_distance(a, b)
    assert found == pytest.approx(float(poly_mmd(a.double(), b.double(), degree=3, gamma=None, coef=1.0)), rel=1e-6)
    assert deviation == 0


@each_set
def test_diversity(name):
    for x in SETS[name]():
        distances = cosine_distances(x.double().numpy())
        expected = distances.sum() / (len(x) * (len(x) - 1))
        assert set_metrics.feature_diversity(x) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def alexnet() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet().eval()


@pytest.mark.parametrize("pair", [name for name in PAIRS if name.endswith("noisy")])
def test_lpips(pair, alexnet):
    """Zhang et al. 2018, eq. 1, on the five ReLUs of AlexNet, from its state dict alone."""
    state = alexnet.state_dict()
    shift, scale = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])

    def stages(x):
        x = ((2 * x[0] - 1 - shift[:, None, None]) / scale[:, None, None])[None]
        for layer, stride, padding, pool in ((0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)):
            x = F.max_pool2d(x, 3, 2) if pool else x
            weight, bias = (state[f"features.{layer}.{part}"] for part in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride, padding).clamp(min=0)
            yield x[0].double().numpy()

    expected = 0.0
    with torch.no_grad():
        for a, b, head in zip(*map(stages, PAIRS[pair]), linear_heads(), strict=True):
            a, b = (v / np.maximum(np.sqrt((v**2).sum(0)), 1e-8) for v in (a, b))
            expected += (head.numpy().reshape(-1, 1, 1) * (a - b) ** 2).sum(0).mean()
        assert Lpips(alexnet)(*PAIRS[pair]).item() == pytest.approx(expected, rel=1e-3)
    assert expected > 0


@pytest.mark.parametrize("path", REAL[:4], ids=lambda path: path.stem)
def test_faces_are_aligned_as_scikit_image_warps_them(path):
    picture = real(path)
    height, width = picture.shape[-2:]
    turn = math.radians(20)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = 0.45 * (np.array(TEMPLATE) - 56) @ rotation.T + [width / 2, height / 2]
    move = estimated(points, np.array(TEMPLATE))
    array = picture[0].permute(1, 2, 0).double().numpy()
    expected = warp(array, move.inverse, output_shape=(112, 112), order=1)
    found = align(picture, torch.from_numpy(points))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=1 / 255)
    assert expected.std() > 0.05
