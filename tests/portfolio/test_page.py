"""The HTML page and the contact sheet: one file, no network, nothing in names that a browser would obey."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from antipure.cli.portfolio import page as pages
from antipure.cli.portfolio.inputs import Picture
from antipure.cli.portfolio.pairs import pair
from antipure.methods.errors import AntiPureError
from antipure.methods.figures.contact_sheet import CELL, Entry, contact_sheet, shrunk
from PIL import Image

from .conftest import lines_of, pixels, saved


class Elements(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def page(photos, protect, tmp_path) -> tuple[Path, str]:
    (photos / "bad.png").write_bytes(b"no picture")
    assert protect(photos, "--out", tmp_path / "out", "--page")[0] == 1
    return tmp_path / "out", (tmp_path / "out" / "antipure_page.html").read_text(encoding="utf-8")


def decoded(address: str) -> np.ndarray:
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


def test_the_page_shows_the_very_pixels_and_every_figure(page, photos):
    out, text = page
    elements, done = Elements(text), [line for line in lines_of(out) if not line["error"]]
    images = [decoded(each["src"]) for each in elements.of("img")]
    assert len(images) == 2 * len(done)
    for i, line in enumerate(sorted(done, key=lambda line: text.index(f'<span class="name">{line["picture"]}<'))):
        assert np.array_equal(images[2 * i], pixels(photos / line["picture"]))
        assert np.array_equal(images[2 * i + 1], pixels(out / line["outputs"][0]["path"]))
        assert f"{line['figures']['psnr']:.5g}" in text
    assert "is not a picture of a kind" in text
    assert "unprotected" in text
    assert len([each for each in elements.of("input") if each["type"] == "range"]) == len(done)


def test_the_page_needs_no_network(page):
    _, text = page
    for _, attributes in Elements(text).found:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", text)
    policy = next(each["content"] for each in Elements(text).of("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_do_nothing_to_a_page(photos, protect, tmp_path):
    name = "<img src=x onerror=alert(1)>{{title}}&\u202e.png"
    (photos / "a.png").rename(photos / name)
    (photos / "<script>.png").write_bytes(b"no picture")
    assert protect(photos, "--out", tmp_path / "out", "--page")[0] == 1
    text = (tmp_path / "out" / "antipure_page.html").read_text(encoding="utf-8")
    elements = Elements(text)
    assert len(elements.of("script")) == 1
    assert all("onerror" not in attributes for _, attributes in elements.found)
    assert "\u202e" not in text


def test_no_page_is_written_unasked_and_a_later_run_adds_it(photos, protect, tmp_path):
    out = tmp_path / "out"
    assert protect(photos, "--out", out)[0] == 0
    first = saved(out)
    assert not any("antipure_" in name for name in first)
    assert protect(photos, "--out", out, "--page")[0] == 0
    assert saved(out).keys() - first.keys() == {"antipure_page.html", "antipure_sheet.png"}
    assert protect(out, "--out", tmp_path / "again")[0] == 0  # the sheet is none of the pictures
    assert len(saved(tmp_path / "again")) == 4


def test_of_many_pictures_some_are_shown_evenly(photos, protect, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MOST_SHOWN", 2)
    monkeypatch.setattr(pages, "MOST_ROWS", 3)
    assert protect(photos, "--out", tmp_path / "out", "--page")[0] == 0
    text = (tmp_path / "out" / "antipure_page.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == 2
    assert "2 of 4, evenly spread" in text
    assert "1 more are in the manifest" in text


def test_large_pictures_are_cut_not_reduced():
    array = np.random.default_rng(0).integers(0, 256, (400, 700, 3)).astype(np.uint8)
    line = {"picture": "x", "figures": {"width": 700, "height": 400}, "error": None}
    before, after, cut = pages.Pair(line, array, array[::-1]).excerpt()
    assert cut
    assert np.array_equal(before, array[40:360, 190:510])
    assert np.array_equal(after, array[::-1][40:360, 190:510])


def test_a_contact_sheet_holds_every_pair_in_its_place():
    red, blue = (np.full((40, 40, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    sheet = contact_sheet([Entry(f"日本 {i}", "", red, blue) for i in range(6)], "title", "subtitle")
    reds = (sheet == (200, 0, 0)).all(-1)
    blues = (sheet == (0, 0, 200)).all(-1)
    assert reds.sum() == blues.sum() == 6 * CELL**2
    first_red, first_blue = np.argwhere(reds)[0], np.argwhere(blues)[0]
    assert first_red[0] == first_blue[0]
    assert first_blue[1] > first_red[1]


@pytest.mark.parametrize("size", [(3, 5), (160, 160), (1000, 10), (10, 1000), (161, 40)])
def test_pictures_on_the_sheet_fit_their_cells(size):
    picture = shrunk(np.zeros((*size, 3), np.uint8), CELL)
    assert max(picture.size) <= CELL
    assert min(picture.size) >= 1


@pytest.mark.parametrize(
    ("original", "made"),
    [
        ("photo.jpg", "photo_protected.png"),
        ("photo.jpg", "photo_protected_00001_.png"),
        ("photo.jpg", "photo_protected_00002.png"),
        ("photo.jpg", "photo_jpg_protected.png"),
        ("photo.jpg", "photo_protected_purified.png"),
        ("photo.jpg", "PHOTO.webp"),
        ("photo_protected.jpg", "photo_protected_protected.png"),
        ("sub/photo.jpg", "sub/photo_purified.png"),
    ],
)
def test_what_belongs_together_by_its_name(original, made):
    others = [Picture("/o/other.png", "other.png"), Picture("/o/photograph.png", "photograph.png")]
    pairs, problems = pair([*others, Picture("/o", original)], [Picture("/m", made)])
    assert [(a.relative, b.relative) for a, b in pairs] == [(original, made)]
    assert problems == []


def test_what_belongs_to_nothing_or_to_several_is_said():
    originals = [Picture("/a", "a.png"), Picture("/b", "a.jpg"), Picture("/c", "c.png")]
    made = [Picture("/1", "a.png"), Picture("/2", "a_protected.webp"), Picture("/3", "d.png")]
    pairs, problems = pair(originals, made)
    assert [(a.source, b.source) for a, b in pairs] == [("/a", "/1")]
    assert problems == ["a_protected.webp has several originals by its name.", "d.png has no original by its name."]
    with pytest.raises(AntiPureError, match="No picture has an original"):
        pair(originals, [Picture("/3", "sub/c.png")])
