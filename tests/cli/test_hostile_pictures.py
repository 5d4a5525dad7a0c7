"""Picture files through the shell: nothing in them does harm, and what cannot be read is refused in a sentence."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from antipure.cli.main import main
from antipure.cli.pictures import find_picture, read_picture
from antipure.methods.errors import AntiPureError
from PIL import EpsImagePlugin, Image, PngImagePlugin

SHIFT = ["protect", "--preset", "shift", "--levels", "3"]


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(20, 236, shape, dtype=np.uint8)


def write_png(path: Path, width: int, height: int, bits: int = 8, rows: bytes | None = None) -> None:
    """An RGB PNG made by hand. rows: what stands for its pixels."""
    rows = b"".join(b"\0" + b"\7" * (3 * width * bits // 8) for _ in range(height)) if rows is None else rows

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def refusal(name: str, capsys, tmp_path) -> str:
    """The one sentence with which a file is refused; nothing is written."""
    assert main([*SHIFT[:1], name, *SHIFT[1:], "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("antipure: ")
    assert "\n" not in error
    assert not (tmp_path / "out").exists()
    return error


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_pictures_are_called_so(kind, share, tmp_path, capsys):
    whole = tmp_path / "whole"
    Image.fromarray(random_pixels(60, 60, 3)).save(whole, kind)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    assert "is a truncated or damaged picture; copy or download it again" in refusal(
        str(tmp_path / "cut.png"), capsys, tmp_path
    )


def test_postscript_is_not_run(tmp_path, capsys, monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    started = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1) or Image.new("RGB", (20, 20)).im
    )
    assert "not a picture of a kind that is read here" in refusal(str(tmp_path / "a.png"), capsys, tmp_path)
    assert started == []


@pytest.mark.parametrize("size", [(14000, 13000), (60000, 60000)])
def test_too_many_pixels_are_called_so_before_they_are_decoded(size, tmp_path, capsys, monkeypatch):
    write_png(tmp_path / "a.png", *size, rows=b"")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert "too many pixels, more than 179 million" in refusal(str(tmp_path / "a.png"), capsys, tmp_path)


def test_running_out_of_memory_is_not_called_damage(tmp_path, capsys, monkeypatch):
    def exhausted(_):
        raise MemoryError

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", exhausted)
    error = refusal(str(tmp_path / "a.png"), capsys, tmp_path)
    assert "memory" in error
    assert "damaged" not in error


def test_the_pixels_of_all_frames_count(tmp_path, capsys, monkeypatch):
    frames = [Image.new("L", (3000, 3000), i) for i in range(25)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    from PIL import GifImagePlugin

    monkeypatch.setattr(GifImagePlugin.GifImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert "too many pixels" in refusal(str(tmp_path / "a.gif"), capsys, tmp_path)


def test_what_is_no_file_is_refused(tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    # A folder stands for the pictures in it, and this one has none.
    assert "There is no picture among what was given" in refusal(str(tmp_path / "folder.png"), capsys, tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
        assert "is a device or a pipe, not a picture" in refusal(str(tmp_path / "pipe.png"), capsys, tmp_path)
        assert "is a device or a pipe, not a picture" in refusal("/dev/zero", capsys, tmp_path)


@pytest.mark.parametrize("name", ["missing.png", "a\0b.png", "x" * 5000, "~nobody-of-this-name/a.png", ""])
def test_names_that_cannot_be_are_no_pictures(name):
    with pytest.raises(AntiPureError, match=r"There is no picture|is a folder") as caught:
        find_picture(name)
    assert len(str(caught.value)) < 400


def test_values_nobody_knows_the_range_of_are_refused(tmp_path, capsys):
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((20, 20), 70000, np.int32)).save(tmp_path / "i.tif")
    assert "floating-point values" in refusal(str(tmp_path / "f.tif"), capsys, tmp_path)
    assert "more than 16 bits" in refusal(str(tmp_path / "i.tif"), capsys, tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA"])
def test_damaged_bytes_give_a_picture_or_a_sentence(kind, tmp_path):
    Image.fromarray(random_pixels(24, 24, 3)).save(tmp_path / "whole", kind)
    whole = np.frombuffer((tmp_path / "whole").read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = whole.copy()
        for place in random.integers(0, min(len(whole), 400), 3):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged").write_bytes(damaged.tobytes())
        try:
            pixels, _, source = read_picture(tmp_path / "damaged")
        except AntiPureError:
            continue  # anything else would fail the test
        assert len(source.frames[0].png(pixels[0])) > 0


def test_names_are_printed_without_control_characters(tmp_path, capsys):
    name = "a\x1b[31m\n.png"
    Image.new("P", (20, 20)).save(tmp_path / name)
    _, _, source = read_picture(tmp_path / name)
    assert source.notes == ["a\\u001b[31m .png has a palette; it is saved as RGB."]


def test_colours_of_16_bits_are_told(tmp_path, capsys):
    write_png(tmp_path / "a.png", 20, 20, bits=16)
    assert main([SHIFT[0], str(tmp_path / "a.png"), *SHIFT[1:], "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "antipure: a.png has 16 bits a channel; 8 of them are kept.\n"
