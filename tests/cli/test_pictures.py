"""Picture files through the shell: nothing they hold gets lost in silence."""

from __future__ import annotations

import copy
import functools
import struct
from pathlib import Path

import numpy as np
import pytest
from antipure.cli.core_nodes import LoadImage
from antipure.cli.executor import Executor
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.main import main
from antipure.cli.pictures import check_picture_file
from antipure.cli.sources import KEEPING, loader_of
from antipure.methods.errors import AntiPureError
from antipure.nodes import NODE_CLASS_MAPPINGS
from PIL import Image, ImageCms, PngImagePlugin

ROOT = Path(__file__).resolve().parents[2]
PURIFY = ["purify", "--iterations", "1", "--timestep", "2"]
SHIFT = ["protect", "--preset", "shift", "--levels", "3"]


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 236, shape, dtype=np.uint8)


@functools.cache
def profile() -> bytes:
    """A real RGB profile, always the same one: the time stands in it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def for_colours(space: bytes) -> bytes:
    """The same for other colours, as far as its header tells."""
    return profile()[:16] + space + profile()[20:]


def processed(path: Path, out: Path, command=SHIFT) -> list[Image.Image]:
    """What the command makes of a file, all pictures in order."""
    assert main([command[0], str(path), *command[1:], "--out", str(out)]) == 0
    return [Image.open(file) for file in sorted(out.glob("*.png"))]


@pytest.mark.parametrize("command", [SHIFT, PURIFY])
def test_alpha_stays_and_hidden_colours_stay_hidden(command, tmp_path):
    """A logo came back opaque: the green under its transparency was to be seen."""
    logo = random_pixels(40, 48, 4)
    logo[:20, :, 3] = 0
    logo[:20, :, :3] = (0, 255, 0)
    Image.fromarray(logo).save(tmp_path / "logo.png")
    (picture,) = processed(tmp_path / "logo.png", tmp_path / "out", command)
    found = np.asarray(picture)
    assert picture.mode == "RGBA"
    assert np.array_equal(found[..., 3], logo[..., 3])
    assert np.array_equal(found[:20], logo[:20])
    assert (found[20:, :, :3] != logo[20:, :, :3]).mean() > 0.3
    # What is seen is what an opaque picture of the same colours becomes.
    Image.fromarray(logo[..., :3]).save(tmp_path / "plain.png")
    (plain,) = processed(tmp_path / "plain.png", tmp_path / "plain", command)
    assert plain.mode == "RGB"
    assert np.array_equal(np.asarray(plain)[20:], found[20:, :, :3])


def test_transparency_of_a_palette_stays(tmp_path, capsys):
    palette = Image.fromarray(random_pixels(20, 20, 3)).quantize(16)
    palette.save(tmp_path / "a.png", transparency=3)
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))
    assert (expected[..., 3] == 0).any()
    (picture,) = processed(tmp_path / "a.png", tmp_path / "out")
    assert np.array_equal(np.asarray(picture)[..., 3], expected[..., 3])
    assert capsys.readouterr().err == "antipure: a.png has a palette; it is saved as RGB.\n"


def test_alpha_that_hides_nothing_gives_the_same_file_as_none(tmp_path):
    pixels = random_pixels(20, 20, 3)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([pixels, np.full((20, 20), 255, np.uint8)])).save(tmp_path / "rgba.png")
    for name in ("rgb", "rgba"):
        processed(tmp_path / f"{name}.png", tmp_path / name)
    (first,), (second,) = ((tmp_path / name).glob("*.png") for name in ("rgb", "rgba"))
    assert first.read_bytes() == second.read_bytes()
    assert LoadImage().load(str(tmp_path / "rgba.png"))[1].shape == (1, 20, 20)


def test_a_mask_drawn_as_alpha_is_a_mask(tmp_path, capsys):
    """ComfyUI's mask editor saves what was painted as transparent: it must be protected, and the picture opaque."""
    painted = random_pixels(40, 48, 4)
    painted[..., 3] = 255
    painted[:20, :, 3] = 0
    Image.fromarray(painted).save(tmp_path / "painted.png")
    base = set_inputs(read_workflow("protect"), [f"1.image={tmp_path / 'painted.png'}", "3.preset=shift"])
    masked = copy.deepcopy(base)
    masked["3"]["inputs"]["mask"] = ["1", 1]
    executor = Executor(tmp_path / "out")
    result = executor.run(masked)
    picture = Image.open(result.files["4"][0])
    changed = np.asarray(picture) != painted[..., :3]
    assert picture.mode == "RGB"
    assert changed[:20].mean() > 0.3
    assert not changed[20:].any()
    assert result.notes == ["painted.png is saved without its alpha, which this workflow uses as a mask."]
    # The saver's own inputs are the same where only another node takes the mask: it is not to be taken from the cache.
    elsewhere = copy.deepcopy(base)
    elsewhere["9"] = {"class_type": "AntiPureProtect", "inputs": {**base["3"]["inputs"], "mask": ["1", 1]}}
    elsewhere["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    modes = [Image.open(executor.run(prompt).files["4"][0]).mode for prompt in (base, elsewhere)]
    assert modes == ["RGBA", "RGB"]


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("command", [SHIFT, PURIFY])
def test_profile_and_resolution_are_saved_again(kind, command, tmp_path):
    """Without its profile a wide-gamut picture changed by 42 levels where 2 were asked for."""
    file = tmp_path / f"a.{kind}"
    Image.fromarray(random_pixels(20, 20, 3)).save(file, icc_profile=profile(), dpi=(300, 150))
    (picture,) = processed(file, tmp_path / "out", command)
    assert picture.info["icc_profile"] == profile()
    if kind != "webp":  # which holds no resolution
        assert picture.info["dpi"] == pytest.approx((300, 150), abs=0.02)


def test_resolution_turns_with_the_picture(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png", exif=exif, dpi=(300, 150))
    (picture,) = processed(tmp_path / "a.png", tmp_path / "out")
    assert picture.size == (20, 30)
    assert picture.info["dpi"] == pytest.approx((150, 300), abs=0.02)


def test_colour_information_of_png_is_saved_again(tmp_path):
    information = PngImagePlugin.PngInfo()
    primaries = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    information.add(b"cHRM", struct.pack(">8I", *primaries))
    information.add(b"gAMA", struct.pack(">I", 45455))
    information.add(b"sRGB", b"\1")
    Image.fromarray(random_pixels(20, 20, 3)).save(tmp_path / "a.png", pnginfo=information)
    (picture,) = processed(tmp_path / "a.png", tmp_path / "out")
    assert picture.info["gamma"] == 0.45455
    assert picture.info["srgb"] == 1
    assert picture.info["chromaticity"] == pytest.approx([value / 100_000 for value in primaries])


@pytest.mark.parametrize(("mode", "space"), [("CMYK", b"CMYK"), ("L", b"GRAY"), ("RGB", b"Lab ")])
def test_a_profile_for_other_colours_is_never_attached(mode, space, tmp_path, capsys):
    Image.new(mode, (20, 20)).save(tmp_path / "a.jpg", icc_profile=for_colours(space))
    (picture,) = processed(tmp_path / "a.jpg", tmp_path / "out")
    assert "icc_profile" not in picture.info
    assert "has a colour profile that is not for RGB, which is left out" in capsys.readouterr().err


@pytest.mark.parametrize("garbage", [b"x", b"\0" * 200])
def test_a_profile_that_is_none_is_never_attached(garbage, tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png", icc_profile=garbage)
    (picture,) = processed(tmp_path / "a.png", tmp_path / "out")
    assert "icc_profile" not in picture.info
    assert "left out" in capsys.readouterr().err


def test_only_pictures_made_from_the_file_get_its_profile(tmp_path):
    """Neither a view of the perturbation, nor a sheet, nor what is made from another file."""
    logo = random_pixels(20, 20, 4)
    Image.fromarray(logo).save(tmp_path / "a.png", icc_profile=profile(), dpi=(300, 300))
    Image.fromarray(random_pixels(20, 20, 3, seed=1)).save(tmp_path / "b.png")
    prompt = set_inputs(read_workflow("protect"), [f"1.image={tmp_path / 'a.png'}", "3.preset=shift"])
    prompt["5"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 1], "filename_prefix": "view"}}
    prompt["6"] = {"class_type": "AntiPureInspect", "inputs": {"original": ["1", 0], "protected": ["3", 0]}}
    prompt["7"] = {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "sheet"}}
    prompt["8"] = {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "b.png")}}
    prompt["9"] = {"class_type": "AntiPureTransform", "inputs": {"image": ["8", 0], "transform": "jpeg75", "seed": 0}}
    prompt["10"] = {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "other"}}
    prompt["11"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}}
    result = Executor(tmp_path / "out").run(prompt)
    for node, expected in {"4": True, "11": True, "5": False, "7": False, "10": False}.items():
        picture = Image.open(result.files[node][0])
        assert (picture.mode == "RGBA", "icc_profile" in picture.info, "dpi" in picture.info) == (expected,) * 3, node
    assert np.array_equal(np.asarray(Image.open(result.files["11"][0])), logo)


def test_nodes_that_keep_a_picture_are_nodes_with_that_picture():
    for name, given in KEEPING.items():
        node = NODE_CLASS_MAPPINGS[name]
        assert node.INPUT_TYPES()["required"][given][0] == node.RETURN_TYPES[0] == "IMAGE"
    assert loader_of({"1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
                      "2": {"class_type": "AntiPureEditFaces", "inputs": {"image": ["3", 0]}},
                      "3": {"class_type": "LoadImage", "inputs": {}}}, "1") is None  # fmt: skip


def test_links_that_lead_nowhere_lead_to_no_file():
    saver = {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}
    circle = {"class_type": "AntiPureProtect", "inputs": {"image": ["2", 0]}}
    assert loader_of({"1": saver, "2": circle}, "1") is None
    assert loader_of({"1": saver}, "1") is None


def test_what_a_comfyui_leaves_out_is_known_without_decoding(tmp_path, monkeypatch):
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png", icc_profile=profile())
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", dpi=(300, 300))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("it was decoded"))
    told = check_picture_file(tmp_path / "a.png")
    assert told == ["a.png has alpha and colour profile, which ComfyUI's Save Image does not save."]
    assert check_picture_file(tmp_path / "b.png") == []


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif"])
def test_every_frame_is_processed(kind, tmp_path, capsys):
    """Only the first one was; ComfyUI's LoadImage gives them all."""
    frames = [Image.fromarray(random_pixels(20, 24, 3, seed=i)) for i in range(3)]
    lossless = {"lossless": True} if kind == "webp" else {}
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **lossless)
    with Image.open(tmp_path / f"a.{kind}") as opened:
        assert opened.n_frames == 3
        expected = []
        for i in range(3):
            opened.seek(i)
            expected.append(np.asarray(opened.convert("RGB")).astype(int))
    pictures = processed(tmp_path / f"a.{kind}", tmp_path / "out")
    assert len(pictures) == 3
    for picture, before in zip(pictures, expected, strict=True):
        assert np.abs(np.asarray(picture).astype(int) - before).max() == 3
    assert f"a.{kind} holds 3 frames; each is a picture of its own here." in capsys.readouterr().err


def test_each_page_keeps_its_own(tmp_path):
    pages = [Image.fromarray(random_pixels(20, 24, 4, seed=i)) for i in range(2)]
    pages[0].encoderinfo = {"icc_profile": profile()}
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], dpi=(300, 300))
    first, second = processed(tmp_path / "a.tif", tmp_path / "out")
    for page, picture in zip(pages, (first, second), strict=True):
        assert np.array_equal(np.asarray(picture)[..., 3], np.asarray(page)[..., 3])
    with Image.open(tmp_path / "a.tif") as opened:
        profiles = []
        for i, picture in enumerate((first, second)):
            opened.seek(i)
            profiles.append(dict(opened.tag_v2).get(34675))
            assert picture.info.get("icc_profile") == profiles[-1]
    assert sorted(found is None for found in profiles) == [False, True]


def test_pages_of_different_sizes_are_refused_and_thumbnails_are_none(tmp_path):
    large, small = Image.new("RGB", (20, 20), 9), Image.new("RGB", (10, 10))
    large.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    with pytest.raises(AntiPureError, match="pictures of different sizes"):
        LoadImage().load(str(tmp_path / "a.tif"))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    large.save(tmp_path / "b.tif", save_all=True, append_images=[small])
    assert LoadImage().load(str(tmp_path / "b.tif"))[0].shape == (1, 20, 20, 3)


@pytest.mark.parametrize(
    ("name", "picture", "told"),
    [
        ("a.png", Image.fromarray(np.full((20, 20), 30000, np.uint16)), "has 16 bits a channel; 8 of them are kept"),
        ("a.jpg", Image.new("CMYK", (20, 20), (9, 60, 90, 20)), "is of mode CMYK; it is saved as RGB"),
        ("a.gif", Image.new("P", (20, 20), 3), "has a palette; it is saved as RGB"),
        ("a.png", Image.new("L", (20, 20), 90), "is grey; it is saved as RGB"),
        ("a.png", Image.new("1", (20, 20), 1), "is of mode 1; it is saved as RGB"),
    ],
)
def test_conversions_are_told_in_a_line(name, picture, told, tmp_path, capsys):
    picture.save(tmp_path / name)
    processed(tmp_path / name, tmp_path / "out")
    assert capsys.readouterr().err == f"antipure: {name} {told}.\n"
    assert main(["measure", str(tmp_path / name), str(tmp_path / name)]) == 0
    assert capsys.readouterr().err == ""  # nothing is saved


def test_a_transparent_colour_of_16_bits_is_told_to_be_left_out(tmp_path, capsys):
    Image.fromarray(np.full((20, 20), 30000, np.uint16)).save(tmp_path / "a.png", transparency=30000)
    processed(tmp_path / "a.png", tmp_path / "out")
    assert "has a transparent colour of 16 bits a channel, which is left out" in capsys.readouterr().err


def test_plain_pictures_are_saved_as_ever(tmp_path, capsys):
    Image.fromarray(random_pixels(20, 20, 3)).save(tmp_path / "a.png")
    processed(tmp_path / "a.png", tmp_path / "out")
    assert capsys.readouterr().err == ""
    (file,) = (tmp_path / "out").glob("*.png")
    Image.fromarray(np.asarray(Image.open(file))).save(tmp_path / "again.png", compress_level=4)
    assert file.read_bytes() == (tmp_path / "again.png").read_bytes()
