"""FID, KID, diversity, LPIPS and their encoders against scipy, plain loops and torchvision's networks."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.distribution import (
    ENOUGH,
    DenoiserFeatures,
    extract,
    feature_diversity,
    frechet_distance,
    kernel_distance,
    pairwise_diversity,
    size_warning,
)
from antipure.methods.metrics.encoders import file_encoder
from antipure.methods.metrics.inception import FidInception
from antipure.methods.metrics.lpips import AlexNet, Lpips, linear_heads
from safetensors.torch import save_file
from scipy.linalg import sqrtm


def features(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mix / width**0.5 + torch.rand(width, generator=generator)


def pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("first", "second", "width"), [(200, 150, 12), (60, 300, 40)])
def test_fid_is_scipys(first, second, width):
    a, b = features(first, width), features(second, width, 1)
    x, y = a.double().numpy(), b.double().numpy()
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(s1 @ s2).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("first", "second", "width"), [(5, 9, 30), (5, 200, 30), (2, 2, 1)])
def test_fid_of_few_pictures_is_exact_though_the_covariances_are_singular(first, second, width):
    """tr (S1 S2)^½ from the eigenvalues of S1 S2: they are real, and those that are not 0 are few."""
    a, b = features(first, width), features(second, width, 1)
    x, y = a.double().numpy(), b.double().numpy()
    s1, s2 = (np.atleast_2d(np.cov(v, rowvar=False)) for v in (x, y))
    trace = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_fid_of_a_set_with_itself_is_0_and_of_a_shift_its_square():
    a = features(100, 8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, a + 3) == pytest.approx(8 * 9, rel=1e-5)


def slow_kid(x: np.ndarray, y: np.ndarray) -> float:
    def k(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    n, m = len(x), len(y)
    same_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    same_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same_x + same_y - 2 * sum(k(u, v) for u in x for v in y) / (n * m)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (20, 13)])
def test_kid_is_an_explicit_double_loop(first, second):
    a, b = features(first, 7), features(second, 7, 1)
    mean, deviation = kernel_distance(a, b)
    assert mean == pytest.approx(slow_kid(a.double().numpy(), b.double().numpy()), rel=1e-9)
    assert deviation == 0


def test_kid_over_subsets_estimates_the_whole():
    a, b = features(120, 6), features(90, 6, 1)
    whole, _ = kernel_distance(a, b)
    mean, deviation = kernel_distance(a, b, subsets=300, subset_size=30)
    assert deviation > 0
    assert mean == pytest.approx(whole, abs=4 * deviation / math.sqrt(300))
    assert (mean, deviation) == kernel_distance(a, b, subsets=300, subset_size=30)
    assert mean != kernel_distance(a, b, subsets=300, subset_size=30, seed=1)[0]


def test_feature_diversity_is_a_mean_over_pairs():
    a = features(6, 5)
    pairs = [1 - torch.cosine_similarity(a[i], a[j], dim=0).item() for i in range(6) for j in range(i)]
    assert feature_diversity(a) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert feature_diversity(a[:1].expand(4, -1)) == pytest.approx(0, abs=1e-6)


def test_pairwise_diversity_takes_all_pairs_or_that_many():
    x = pictures(5, 4)

    def distance(a, b):
        return (a - b).square().flatten(1).mean(1)

    expected = np.mean([float(distance(x[i : i + 1], x[j : j + 1])) for i in range(5) for j in range(i)])
    assert pairwise_diversity(x, distance) == (pytest.approx(expected, rel=1e-6), 10)
    drawn = pairwise_diversity(x, distance, pairs=3, seed=2)
    assert drawn[1] == 3
    assert drawn == pairwise_diversity(x, distance, pairs=3, seed=2)


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (torch.rand(5, 3), torch.rand(5, 4), "N×D and M×D"),
        (torch.rand(1, 3), torch.rand(5, 3), "1 and 5 pictures"),
        (torch.rand(5, 3), torch.full((5, 3), float("nan")), "NaN"),
    ],
)
def test_features_that_make_no_distribution_are_refused(a, b, sentence):
    for metric in (frechet_distance, kernel_distance):
        with pytest.raises(AntiPureError, match=sentence):
            metric(a, b)


def test_few_pictures_are_warned_about():
    assert "2048" in size_warning(ENOUGH - 1, ENOUGH)
    assert size_warning(ENOUGH, ENOUGH) is None


def test_the_bundled_denoiser_gives_features_in_any_batches_and_sizes():
    encoder = DenoiserFeatures(load_denoiser(None), "bundled denoiser")
    assert encoder.name == "bundled denoiser, middle block at timestep 20"
    x = pictures(3, 20)
    together = extract(x, encoder)
    assert together.shape == (3, 128)
    torch.testing.assert_close(extract(x, encoder, batch=1), together, rtol=1e-4, atol=1e-5)
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    near = frechet_distance(together, extract(x + 1 / 255, encoder))
    assert near < 0.05 * frechet_distance(together, extract(blurred, encoder))


def test_fids_inception_has_inception_v3s_layers_and_other_pooling():
    """torchvision's InceptionV3 without classifier has 21,785,568 parameters."""
    network = FidInception().eval()
    assert sum(p.numel() for p in network.parameters()) == 21_785_568
    with torch.no_grad():
        assert network(pictures(1, 50)).shape == (1, 2048)


def test_fids_inception_takes_torchvisions_names(monkeypatch, face):
    torchvision = pytest.importorskip("torchvision")
    other = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False).eval()
    ours = FidInception().eval()
    ours.load_state_dict({k: v for k, v in other.state_dict().items() if not k.startswith("fc.")}, strict=True)
    other.fc = torch.nn.Identity()
    x = torch.cat([pictures(1, 299), torch.nn.functional.interpolate(face, 299)])
    pool = torch.nn.functional.avg_pool2d
    with torch.no_grad():
        # torchvision's, with the padding left out of the averages and the last block pooling by maximum
        monkeypatch.setattr(torch.nn.functional, "avg_pool2d", lambda *a, **k: pool(*a, **k, count_include_pad=False))
        other.Mixed_7c.branch_pool.register_forward_pre_hook(
            lambda module, inputs: (torch.nn.functional.max_pool2d(found[0], 3, 1, 1),)
        )
        found: list[torch.Tensor] = []
        other.Mixed_7c.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        expected = other(x)
        monkeypatch.undo()
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["inception", "alexnet"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_are_told_apart_and_named(tmp_path, kind, suffix):
    network = {"inception": FidInception, "alexnet": AlexNet}[kind]().eval()
    state = network.state_dict()
    classifier = {"inception": "fc.weight", "alexnet": "classifier.6.weight"}[kind]
    state[classifier] = torch.zeros(3, 3)
    path = tmp_path / f"mine{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = file_encoder(path)
    assert f"(mine{suffix})" in encoder.name
    x = pictures(1, 224)
    found = extract(x, encoder)
    assert found.shape == (1, {"inception": 2048, "alexnet": 256}[kind])
    if kind == "inception":
        with torch.no_grad():
            levels = (x * 255).round() / 255
            torch.testing.assert_close(found, network(levels * 2 - 1), rtol=1e-4, atol=1e-5)


def test_files_of_torch_before_1_6_are_read(tmp_path):
    """The published InceptionV3 is older than torch's zip files; those are read with weights_only, too."""
    network = AlexNet().eval()
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pth")
    found = file_encoder(tmp_path / "old.pth").module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def test_incomplete_files_are_refused(tmp_path):
    state = FidInception().state_dict()
    del state["Mixed_7c.branch_pool.bn.bias"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(AntiPureError, match="FID's InceptionV3"):
        file_encoder(tmp_path / "x.safetensors")


@pytest.fixture
def alexnet() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet().eval()


def test_lpips_is_its_formula(alexnet):
    x, y = pictures(2, 40), pictures(2, 40, 1)
    shift, scale = np.array([-0.03, -0.088, -0.188]), np.array([0.458, 0.448, 0.45])
    heads = [h.flatten().numpy() for h in linear_heads()]
    assert [len(h) for h in heads] == [64, 192, 384, 256, 256]
    expected = np.zeros(2)
    with torch.no_grad():
        for i in range(2):
            stages = []
            for picture in (x[i], y[i]):
                array = ((picture.permute(1, 2, 0).numpy() * 2 - 1) - shift) / scale
                stages.append(alexnet.stages(torch.from_numpy(array).float().permute(2, 0, 1)[None]))
            for a, b, head in zip(*stages, heads, strict=True):
                a, b = (v[0].double().numpy() for v in (a, b))
                a, b = (v / np.sqrt((v**2).sum(0, keepdims=True)) for v in (a, b))
                expected[i] += ((a - b) ** 2 * head[:, None, None]).sum(0).mean()
        np.testing.assert_allclose(Lpips(alexnet)(x, y).numpy(), expected, rtol=1e-4)
        assert Lpips(alexnet)(x, x).tolist() == [0, 0]


def test_the_bundled_heads_are_those_torchmetrics_carries():
    import torchmetrics

    path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    for stage, head in enumerate(linear_heads()):
        assert torch.equal(head, state[f"lin{stage}.model.1.weight"])


def test_lpips_is_torchmetrics(alexnet, face):
    torchvision = pytest.importorskip("torchvision")
    from torchmetrics.functional.image.lpips import _LPIPS

    other = torchvision.models.alexnet(weights=None)
    reference = _LPIPS(pretrained=True, net="alex", pnet_rand=True, use_dropout=True).eval()
    other.load_state_dict({**other.state_dict(), **alexnet.state_dict()}, strict=True)
    mine = dict(alexnet.state_dict())
    for name, value in reference.net.state_dict().items():  # slice1.0.weight: the same numbers, other prefixes
        value.copy_(mine["features." + name.split(".", 1)[1]])
    x, y = pictures(2, 64), pictures(2, 64, 1)
    x[1], y[1] = face[0, :, :64, :64], face[0, :, 32:96, 40:104]
    with torch.no_grad():
        expected = reference(x, y, normalize=True).flatten()
        torch.testing.assert_close(Lpips(alexnet)(x, y), expected, rtol=1e-3, atol=1e-5)


def test_lpips_carries_gradient_and_refuses_what_it_cannot_compare(alexnet):
    x = pictures(1, 40).requires_grad_()
    Lpips(alexnet)(x, pictures(1, 40, 1)).sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(AntiPureError, match="equal size"):
        Lpips(alexnet)(pictures(1, 40), pictures(1, 50))
    with pytest.raises(AntiPureError, match="32×32"):
        Lpips(alexnet)(pictures(1, 20), pictures(1, 20))
