"""The benchmarks' picture sets: halves that share nothing, balanced by kind; sizes; drawn as shipped."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from antipure.benchmarks import sets
from PIL import Image

from tools import draw_artworks, judge_data, training_data

PICTURES = sets.load()
CROPS = [p for p in PICTURES.values() if not p.whole]


def test_the_halves_are_balanced_by_kind():
    counts = {half: Counter((p.kind, p.whole) for p in PICTURES.values() if p.half == half) for half in sets.HALVES}
    development, held_out = counts["development"], counts["held_out"]
    assert {kind: n for (kind, whole), n in held_out.items() if not whole} == {
        "photograph": 4, "flat illustration": 1, "line art": 1, "painting": 1, "logo": 1
    }  # fmt: skip
    assert {key: n for key, n in development.items() if not key[1]} == {
        key: n for key, n in held_out.items() if not key[1]
    }
    for count in counts.values():
        whole = [kind == "photograph" for (kind, whole), n in count.items() if whole for _ in range(n)]
        assert sorted(whole) == [False, True]
    assert sets.names("held_out", whole=True) == ("whole_hopper", "whole_street")
    assert len(PICTURES) == 20


@pytest.mark.parametrize("name", list(PICTURES))
def test_files_are_there_and_of_the_size_they_should_have(name):
    picture = PICTURES[name]
    pixels = picture.read()
    assert pixels.shape[:2] == (1, 3)
    sides = pixels.shape[-2:]
    assert (min(sides) >= 512 and max(sides) <= 768) if picture.whole else sides == (128, 128)
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1
    assert float(pixels.std()) > 0.05
    assert len(picture.why) > 15
    assert picture.source
    assert picture.licence


def test_no_piece_of_one_half_lies_in_the_other():
    """Compared pixel by pixel at every place of the whole pictures, and by the photographs they come from."""
    sources = {
        half: {p.source.split(",")[0:2][-1] for p in PICTURES.values() if p.half == half} for half in sets.HALVES
    }
    own = {s for s in sources["held_out"] & sources["development"] if "draw_artworks" not in s}
    assert not own
    assert len({p.path.read_bytes() for p in PICTURES.values()}) == len(PICTURES)
    crops = {p.name: p.read()[0].mean(0).numpy() for p in CROPS}
    for a in CROPS:
        for b in CROPS:
            if a.half != b.half and a.kind != "logo":
                x, y = crops[a.name], crops[b.name]
                alike = np.corrcoef(x.ravel(), y.ravel())[0, 1]
                assert alike < 0.8, (a.name, b.name)


def test_no_denoiser_was_trained_on_the_held_out_half():
    for picture in PICTURES.values():
        if picture.half == "held_out":
            file = picture.source.rsplit("/", 1)[-1]
            assert not any(
                name in picture.source for name in (*training_data.SKIMAGE_PHOTOS, *training_data.SKLEARN_PHOTOS)
            )
            packages = (*judge_data.WALLPAPERS, judge_data.STAMPS[0], judge_data.WESNOTH[0])
            if picture.judge_key:
                assert judge_data.reserved(picture.judge_key)
            else:
                assert not any(package in picture.source for package in packages), file
    assert not judge_data.reserved(PICTURES["peaks"].judge_key)  # which is why it is in the development half


def test_transparent_parts_lie_on_white():
    logo = PICTURES["logo_ring"]
    with Image.open(logo.path) as picture:
        alpha = np.asarray(picture)[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert (logo.read()[0].permute(1, 2, 0).numpy()[alpha == 0] == 1).all()


@pytest.mark.parametrize("name", ["flat_still_life", "line_ship", "logo_ring", "logo_chart", "painting_lake"])
def test_artworks_are_what_the_script_draws(name):
    drawn, shipped = (np.asarray(im, float) for im in (draw_artworks.ARTWORKS[name](), Image.open(PICTURES[name].path)))
    assert drawn.shape == shipped.shape
    assert np.abs(drawn - shipped).mean() < 0.5  # Pillow's edges may change by a level
