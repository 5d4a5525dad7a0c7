"""Random views for expectation over transformations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from antipure.methods.pictures import from_uint8
from antipure.methods.purification.random_view import DrawnView, RandomView
from antipure.methods.purification.views import Geometry
from PIL import Image


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_everything_is_drawn_from_all_of_its_range():
    generator, views = stream(0), RandomView()
    drawn = [views.draw(200, 300, generator) for _ in range(600)]
    scales = [one.geometry.height / 200 for one in drawn]
    assert 0.4 <= min(scales) < 0.42
    assert 0.98 < max(scales) <= 1
    assert abs(np.mean(scales) - 0.7) < 0.03
    assert {one.quality for one in drawn} == set(range(60, 96))
    kernels = [one.geometry.kernel for one in drawn]
    assert all(kernels.count(name) > 100 for name in ("area", "lanczos", "bicubic", "bilinear"))
    assert {one.geometry.window[0] for one in drawn} == {one.geometry.window[1] for one in drawn} == set(range(8))


@pytest.mark.parametrize("multiple", [1, 8, 64])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 17), (70, 200), (512, 512)])
def test_what_comes_out_lies_inside_and_has_sides_of_the_multiple(size, multiple):
    generator, views = stream(1), RandomView(multiple=multiple)
    for _ in range(50):
        geometry = views.draw(*size, generator).geometry
        top, left, rows, columns = geometry.window
        assert 0 <= top <= top + rows <= geometry.height <= size[0]
        assert 0 <= left <= left + columns <= geometry.width <= size[1]
        for kept, side in ((rows, size[0]), (columns, size[1])):
            assert kept % multiple == 0 or kept == side < multiple
            assert kept >= 1
        if min(size) >= 200:
            assert rows > geometry.height - 2 * multiple


def test_a_seed_names_a_view_and_the_stream_goes_on_alike():
    a, b = stream(4), stream(4)
    assert [RandomView().draw(90, 80, a) for _ in range(5)] == [RandomView().draw(90, 80, b) for _ in range(5)]
    RandomView(qualities=None, kernels=("area",)).draw(90, 80, a)
    RandomView().draw(90, 80, b)
    assert RandomView().draw(90, 80, a) == RandomView().draw(90, 80, b)


def test_a_view_is_what_pillow_does():
    levels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    view = DrawnView(Geometry(33, 44, "lanczos", (3, 5, 24, 32)), 70)
    small = Image.fromarray(levels).resize((44, 33), Image.LANCZOS).crop((5, 3, 37, 27))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=70)
    expected = from_uint8(np.asarray(Image.open(file)))
    found = view(from_uint8(levels))
    # A level before the JPEG may become a few behind it.
    assert ((found - expected).abs() > 0.5 / 255).float().mean() < 0.02


def test_gradients_reach_the_picture_and_are_those_of_the_resizing():
    x = (0.4 + 0.2 * torch.rand(2, 3, 40, 48, generator=stream(0))).requires_grad_()
    view = RandomView().draw(40, 48, stream(9))
    found = view(x)
    direction = torch.randn(found.shape, generator=stream(1))
    (gradient,) = torch.autograd.grad((found * direction).sum(), x)
    (true,) = torch.autograd.grad((view.geometry(x, rounded=False) * direction).sum(), x)
    assert torch.allclose(gradient, true, atol=1e-6)
    assert true.abs().max() > 0


def test_without_jpeg_it_is_the_geometry():
    x = torch.rand(1, 3, 40, 48, generator=stream(0))
    view = RandomView(qualities=None).draw(40, 48, stream(3))
    assert view.quality is None
    assert torch.equal(view(x), view.geometry(x))


@pytest.mark.parametrize("seed", range(4))
def test_gradcheck(seed):
    geometry = RandomView(multiple=2).draw(7, 9, stream(seed)).geometry
    x = torch.rand(1, 1, 7, 9, dtype=torch.float64, generator=stream(seed), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: geometry(x, rounded=False), x)
