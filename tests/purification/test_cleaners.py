"""AdverseCleaner and non-local means: against OpenCV, and the guided filter against the paper in plain numpy."""

import numpy as np
import pytest
import torch
from antipure.kernels.cleaning import bilateral_filter, guided_filter
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import from_uint8, to_uint8
from antipure.methods.purification.cleaners import adversecleaner, nlm
from antipure.methods.purification.transforms import parse_transform

cv2 = pytest.importorskip("cv2", reason="pip install opencv-contrib-python-headless")


@pytest.fixture(scope="module")
def noisy(face):
    """A photograph under random signs of 8 levels, 72×90×3 uint8."""
    clean = to_uint8(face)[0][20:92, 30:120].astype(int)
    signs = np.random.default_rng(0).choice([-8, 8], clean.shape)
    return np.clip(clean + signs, 0, 255).astype(np.uint8)


def agree(mine, theirs, share=0.01, worst=1):
    apart = np.abs(to_uint8(mine)[0].astype(int) - theirs.astype(int))
    assert (apart > 0).mean() <= share, f"{(apart > 0).mean():.4f} of the values differ"
    # Rounded ties add up where a pixel hangs between two sides of an edge: a handful may be further apart.
    assert np.sort(apart.ravel())[-10] <= worst


@pytest.mark.skipif(not hasattr(cv2, "ximgproc"), reason="pip install opencv-contrib-python-headless")
def test_adversecleaner_is_the_program(noisy):
    theirs = noisy.copy()
    for _ in range(64):
        theirs = cv2.bilateralFilter(theirs, 5, 8, 8)
    for _ in range(4):
        theirs = cv2.ximgproc.guidedFilter(noisy, theirs, 4, 16)
    agree(adversecleaner(from_uint8(noisy)), theirs)


def slow_guided_filter(guide, x, radius, eps):
    """He et al., eq. 19-21, window by window; mirrored borders."""

    def windows(values):
        padded = np.pad(values, ((radius,) * 2, (radius,) * 2, (0, 0)), mode="symmetric")
        return np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1,) * 2, (0, 1))

    height, width = guide.shape[:2]
    a, b = np.zeros((height, width, 9)), np.zeros((height, width, 3))
    g, t = windows(guide), windows(x)
    for i in range(height):
        for j in range(width):
            colours, target = g[i, j].reshape(3, -1), t[i, j].reshape(3, -1)
            cov = np.cov(colours, bias=True) + eps * np.eye(3)
            cross = (colours - colours.mean(1, keepdims=True)) @ (target - target.mean(1, keepdims=True)).T
            slope = np.linalg.solve(cov, cross / colours.shape[1])
            a[i, j], b[i, j] = slope.ravel(), target.mean(1) - slope.T @ colours.mean(1)
    a, b = windows(a).mean((-1, -2)).reshape(height, width, 3, 3), windows(b).mean((-1, -2))
    return np.einsum("ijck,ijc->ijk", a, guide) + b


def test_the_guided_filter_is_the_papers(noisy):
    guide = noisy[:24, :30].astype(float)
    x = cv2.bilateralFilter(noisy, 5, 8, 8)[:24, :30].astype(float)
    mine = guided_filter(*(torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (guide, x)), 4, 16)
    np.testing.assert_allclose(mine[0].permute(1, 2, 0), slow_guided_filter(guide, x, 4, 16), atol=1e-3)


def test_one_bilateral_pass_of_it_is_opencvs(noisy):
    mine = bilateral_filter(torch.from_numpy(noisy).permute(2, 0, 1)[None].float()).round() / 255
    agree(mine, cv2.bilateralFilter(noisy, 5, 8, 8), share=0.0005)


@pytest.mark.parametrize("levels", [3, 10, 25])
def test_non_local_means_is_opencvs(noisy, levels):
    agree(nlm(from_uint8(noisy), levels), cv2.fastNlMeansDenoising(noisy, None, levels, 7, 21), share=0.03)


def test_they_clean(face):
    """Noise is taken out of a picture: nearer to the clean one than it was."""
    clean = face[..., 20:84, 30:94]
    noisy = (clean + 8 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    for cleaner in (adversecleaner, nlm):
        assert (cleaner(noisy) - clean).square().mean() < 0.7 * (noisy - clean).square().mean()


@pytest.mark.parametrize("name", ["adversecleaner2", "nlm10"])
def test_as_transforms_they_keep_the_size_pass_gradients_and_know_no_batch(name):
    x = torch.rand(2, 3, 3, 40, generator=torch.Generator().manual_seed(2), requires_grad=True)
    transform = parse_transform(name)
    out = transform(x)
    assert str(transform) == name
    assert torch.equal(transform(x.detach()), out.detach())
    assert torch.equal(transform(x.detach()[1:]), out.detach()[1:])
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


@pytest.mark.parametrize("text", ["nlm0", "nlm300", "adversecleaner0", "adversecleaner1.5", "adversecleaner300"])
def test_what_makes_no_sense_is_refused(text):
    with pytest.raises(AntiPureError):
        parse_transform(text)
