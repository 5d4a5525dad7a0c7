"""Conversions, padding, tiling and random streams."""

from __future__ import annotations

import io
import itertools
import threading

import numpy as np
import pytest
import torch
from antipure.kernels.transfer import to_device
from antipure.methods import pictures
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import (
    check_picture,
    grid_positions,
    noise,
    noises,
    pad_reflect,
    random_positions,
    random_stream,
    round_8bit,
    round_up,
    to_picture,
    to_pixels,
)
from PIL import Image


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def comfy_save(picture: torch.Tensor) -> np.ndarray:
    """What ComfyUI's SaveImage writes: it truncates."""
    return np.clip(255.0 * picture.numpy(), 0, 255).astype(np.uint8)


def png_round_trip(array: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 through a PNG in memory."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("size", range(1, 41))
def test_pad_reflect_is_numpys_mirror_for_any_padding(size):
    x = torch.rand(1, 2, size, 41 - size, generator=stream(size))
    for height, width in ((size, 41), (41, 41 - size), (size + 1, 42 - size), (97, 130)):
        expected = np.pad(x, ((0, 0), (0, 0), (0, height - size), (0, width - (41 - size))), mode="reflect")
        np.testing.assert_array_equal(pad_reflect(x, height, width).numpy(), expected)


def test_pad_reflect_never_crops():
    x = torch.rand(1, 3, 9, 5)
    assert torch.equal(pad_reflect(x, 4, 5), x)


def test_pad_reflect_passes_gradients():
    x = torch.rand(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: pad_reflect(y, 7, 8), x)


def test_every_level_survives_saving_and_loading():
    levels = torch.arange(256).float()
    picture = round_8bit(levels[None, None, :, None].expand(1, 3, 256, 2) / 255)[0].permute(1, 2, 0)
    array = comfy_save(picture)
    np.testing.assert_array_equal(array[:, 0, 0], np.arange(256))
    loaded = torch.from_numpy(png_round_trip(array).astype(np.float32) / 255.0)  # as ComfyUI's LoadImage
    assert torch.equal(loaded, picture)


def test_rounding_gives_the_nearest_level_and_the_saved_file_holds_it():
    x = torch.rand(64, 64, 3, generator=stream()) * 1.2 - 0.1
    rounded = round_8bit(x)
    nearest = np.rint(np.clip(x.double().numpy(), 0, 1) * 255)
    np.testing.assert_array_equal(comfy_save(rounded), nearest.astype(np.uint8))
    loaded = torch.from_numpy(png_round_trip(comfy_save(rounded)).astype(np.float32) / 255.0)
    assert torch.equal(loaded, rounded)
    assert torch.equal(round_8bit(rounded), rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_returns_float32_whatever_comes_in(dtype):
    x = torch.rand(1, 3, 8, 8, generator=stream()).to(dtype)
    rounded = round_8bit(x)
    assert rounded.dtype == torch.float32
    assert (rounded - x.float()).abs().max() <= 0.5 / 255 + 1e-6


def test_levels_survive_the_way_to_pixels_and_back():
    picture = torch.arange(256).float()[None, None, None] / 255
    pixels = to_pixels(picture)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert torch.equal(round_8bit(to_picture(pixels)), picture)
    assert torch.equal(to_picture(torch.tensor([-3.0, 3.0])), torch.tensor([0.0, 1.0]))


def draw(*path: int) -> tuple[float, ...]:
    return tuple(torch.randn(4, generator=random_stream(*path)).tolist())


def test_random_streams_repeat_for_the_same_path_and_differ_for_others():
    paths = [(s,) for s in range(40)]
    paths += [(s, i) for s in range(20) for i in range(20)]
    paths += [(s, i, j) for s in range(5) for i in range(8) for j in range(8)]
    paths += [(-1,), (2**32,), (2**63,), (2**64 - 2,), (0, 2**32), (2**32, 0), (2**61 + 5, 3)]
    draws = {path: draw(*path) for path in paths}
    assert len(set(draws.values())) == len(paths)
    assert all(draw(*path) == value for path, value in list(draws.items())[::17])


def test_seeds_that_differ_in_their_high_bits_only_give_other_streams():
    """torch's CPU generator alone looks at the low 32 bits."""
    assert draw(7) != draw(7 + 2**32) != draw(7 + 2**33)


def test_random_streams_do_not_touch_the_global_generator():
    state = torch.get_rng_state()
    draw(3, 4)
    assert torch.equal(state, torch.get_rng_state())


def test_neighbouring_streams_are_independent():
    draws = torch.stack([torch.randn(2000, generator=random_stream(0, i)) for i in range(20)])
    correlation = torch.corrcoef(draws) - torch.eye(20)
    assert correlation.abs().max() < 0.12  # 5 sigma


def test_noise_takes_each_sample_from_its_own_stream():
    together = noise((3, 4, 5), [stream(1), stream(2)], torch.device("cpu"))
    assert torch.equal(together[0], torch.randn(3, 4, 5, generator=stream(1)))
    assert torch.equal(together[1], torch.randn(3, 4, 5, generator=stream(2)))


def covered(height: int, width: int, tile: int, positions: list[tuple[int, int]]) -> np.ndarray:
    """How often each pixel is covered; asserts that every tile lies inside."""
    count = np.zeros((height, width), int)
    for y, x in positions:
        assert 0 <= y <= height - tile
        assert 0 <= x <= width - tile
        count[y : y + tile, x : x + tile] += 1
    return count


@pytest.mark.parametrize("tile", [7, 16, 64])
def test_grid_and_random_tiles_cover_every_pixel_of_every_size(tile):
    for size in range(1, 201):
        height, width = max(size, tile), max(201 - size, tile)
        grid = grid_positions(height, width, tile, tile // 2)
        assert covered(height, width, tile, grid).min() >= 1
        assert len(set(grid)) == len(grid)
        rows = sorted({y for y, _ in grid})
        assert rows[0] == 0
        assert rows[-1] == height - tile
        assert max((b - a for a, b in itertools.pairwise(rows)), default=0) <= tile // 2
        random = random_positions(height, width, tile, stream(size))
        assert covered(height, width, tile, random).min() >= 1
        assert len(set(random)) == len(random) <= (-(-height // tile) + 1) * (-(-width // tile) + 1)


def test_a_picture_of_one_tile_needs_one_tile():
    assert grid_positions(16, 16, 16, 8) == [(0, 0)]
    assert all(random_positions(16, 16, 16, stream(s)) == [(0, 0)] for s in range(20))


def test_random_tiles_take_every_offset():
    columns = {x % 8 for s in range(200) for _, x in random_positions(8, 64, 8, stream(s))}
    assert columns == set(range(8))


@pytest.mark.parametrize(
    ("value", "multiple", "expected"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (7, 1, 7), (200, 64, 256)]
)
def test_round_up(value, multiple, expected):
    assert round_up(value, multiple) == expected


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.zeros(3, 8, 8), "RGB pictures, B×3×H×W"),
        (torch.zeros(1, 8, 8, 3), "RGB pictures, B×3×H×W"),
        (torch.zeros(1, 4, 8, 8), "RGB pictures, B×3×H×W"),
        (torch.zeros(1, 3, 0, 8), "no pixels"),
        (torch.zeros(0, 3, 8, 8), "no pixels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN or infinite"),
        (torch.full((1, 3, 8, 8), float("inf")), "NaN or infinite"),
    ],
)
def test_unusable_pictures_are_named_and_refused(picture, message):
    with pytest.raises(AntiPureError, match=message) as raised:
        check_picture(picture, "portrait")
    assert "The portrait " in str(raised.value)


@pytest.mark.parametrize("shape", [(2,), (3, 5, 1), (3, 7, 9), (3, 16, 16)])
def test_noise_is_what_each_generator_draws_alone(shape):
    together = noise(shape, [random_stream(1, i) for i in range(4)], torch.device("cpu"))
    for i, one in enumerate(together):
        assert torch.equal(one, torch.randn(shape, generator=random_stream(1, i)))


def test_to_device_keeps_values():
    x = torch.arange(6).view(2, 3)
    assert torch.equal(to_device(x, torch.device("cpu")), x)
    weights = torch.rand(3, 4, dtype=torch.float64).T
    assert torch.equal(to_device(weights, torch.device("cpu"), torch.float32), weights.float())


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("samples", [1, 3, 11])
def test_noise_drawn_ahead_in_threads_is_the_noise_of_one_thread(monkeypatch, samples, inference):
    shape, names = (3, 256, 256), set()
    draw = pictures._draw

    def watched(*arguments):
        names.add(threading.current_thread().name)
        return draw(*arguments)

    monkeypatch.setattr(pictures, "_draw", watched)
    monkeypatch.setattr(pictures, "drawing_threads", lambda device: 4)
    cpu = torch.device("cpu")
    with torch.inference_mode(inference):
        found = list(noises(3, shape, [random_stream(5, i) for i in range(samples)], cpu))
    assert all(name.startswith("antipure-noise") for name in names)
    assert names
    for i in range(samples):
        generator = random_stream(5, i)
        for step in range(3):
            assert torch.equal(found[step][i], torch.randn(shape, generator=generator))


def test_noise_for_the_cpu_is_drawn_by_the_thread_that_asks(monkeypatch):
    monkeypatch.setattr(pictures, "_pool", lambda: pytest.fail("threads of its own"))
    assert len(list(noises(2, (3, 256, 256), [stream()], torch.device("cpu")))) == 2
    monkeypatch.setattr(pictures, "drawing_threads", lambda device: 4)
    assert noise((3, 8, 8), [stream()], torch.device("cpu")).shape == (1, 3, 8, 8), "too little to be worth it"
