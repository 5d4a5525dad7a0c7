"""Who made a picture stays with it; where, when and with what it was made does not, unless it is asked for."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from antipure.cli.credits import read_credits
from antipure.cli.main import main
from antipure.cli.pictures import Frame
from PIL import ExifTags, Image

XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 exif:GPSLatitude="52,30N" photoshop:Credit="Studio Ana" tiff:Orientation="6" xmp:CreatorTool="Camera 5">
<dc:creator><rdf:Seq><rdf:li>Ana Artist</rdf:li></rdf:Seq></dc:creator>
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">(c) Ana</rdf:li></rdf:Alt></dc:rights>
<plus:DataMining>http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED</plus:DataMining>
<xmp:Thumbnails><rdf:Alt><rdf:li rdf:parseType="Resource">the picture itself</rdf:li></rdf:Alt></xmp:Thumbnails>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
RDF, DC = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}", "{http://purl.org/dc/elements/1.1/}"


def exif() -> bytes:
    found = Image.Exif()
    found[315], found[33432], found[271], found[274] = "Ana Artist", "(c) Ana", "Camera maker", 6
    place, shot = found.get_ifd(34853), found.get_ifd(34665)
    place[1], place[2] = "N", (52.0, 30.0, 0.0)
    shot[0x927C], shot[36867] = b"a preview", "2020:01:01 00:00:00"
    found[34853], found[34665] = place, shot
    return found.tobytes()


def iptc() -> bytes:
    """APP13 of a JPEG, as Photoshop writes it (IPTC-IIM 4.2)."""

    def dataset(number: int, text: str) -> bytes:
        return b"\x1c\x02" + bytes([number]) + struct.pack(">H", len(text.encode())) + text.encode()

    records = dataset(80, "Ünal Artist") + dataset(110, "Agency") + dataset(116, "(c) Agency") + dataset(90, "Berlin")
    block = b"8BIM\x04\x04\x00\x00" + struct.pack(">I", len(records)) + records + b"\x00" * (len(records) % 2)
    content = b"Photoshop 3.0\x00" + block
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def photo(path: Path, **settings) -> Path:
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(path, **settings)
    return path


def as_saved(path: Path, **settings) -> Image.Image:
    found = read_credits(path, **settings)
    return Image.open(io.BytesIO(Frame(xmp=found.xmp, exif=found.exif).png(np.zeros((4, 4, 3), np.uint8))))


def properties(packet: str | bytes) -> dict[str, str]:
    """XMP's properties by their tags, with the text in them, read without the code under test."""
    description = ElementTree.fromstring(packet).find(f".//{RDF}Description")
    assert description is not None
    return {element.tag.rpartition("}")[2]: "".join(element.itertext()).strip() for element in description}


@pytest.mark.parametrize("kind", ["jpg", "webp", "tif", "png"])
def test_the_creator_stays_and_the_rest_goes(kind, tmp_path):
    if kind == "tif":
        path = photo(tmp_path / "x.tif", tiffinfo={315: "Ana Artist", 33432: "(c) Ana", 271: "Camera maker", 700: XMP})
    elif kind == "png":
        from PIL.PngImagePlugin import PngInfo

        information = PngInfo()
        information.add_itxt("XML:com.adobe.xmp", XMP.decode())
        path = photo(tmp_path / "x.png", exif=exif(), pnginfo=information)
    else:
        path = photo(tmp_path / f"x.{kind}", exif=exif(), xmp=XMP)
    made = as_saved(path)
    assert dict(made.getexif()) == {315: "Ana Artist", 33432: "(c) Ana"}
    assert not made.getexif().get_ifd(34853)
    assert properties(made.info["XML:com.adobe.xmp"]) == {
        "creator": "Ana Artist",
        "rights": "(c) Ana",
        "Credit": "Studio Ana",
        "DataMining": "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED",
    }


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_all_is_kept_if_asked_but_copies_of_the_picture_and_how_it_lay(kind, tmp_path):
    made = as_saved(photo(tmp_path / f"x.{kind}", exif=exif(), xmp=XMP), everything=True)
    found = made.getexif()
    assert found[271] == "Camera maker"
    assert found.get_ifd(34853)[2] == (52.0, 30.0, 0.0)
    assert found.get_ifd(34665) == {36867: "2020:01:01 00:00:00"}
    assert 274 not in found
    kept = properties(made.info["XML:com.adobe.xmp"])
    assert kept["GPSLatitude"] == "52,30N"
    assert kept["CreatorTool"] == "Camera 5"
    assert not {"Thumbnails", "Orientation"} & kept.keys()


def test_a_thumbnail_in_exif_is_never_kept(tmp_path):
    """It is a small copy of the picture that nobody protected. Written by hand: Pillow writes none."""
    small = io.BytesIO()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(small, "JPEG")
    thumbnail = small.getvalue()
    first = struct.pack("<H", 1) + struct.pack("<HHII", 315, 2, 4, int.from_bytes(b"Ana\x00", "little"))
    second_at = 8 + len(first) + 4
    second = struct.pack("<H", 2) + struct.pack("<HHII", 513, 4, 1, second_at + 30) + struct.pack(
        "<HHII", 514, 4, 1, len(thumbnail)
    )  # fmt: skip
    block = b"II*\x00" + struct.pack("<I", 8) + first + struct.pack("<I", second_at) + second + b"\x00" * 4 + thumbnail
    path = photo(tmp_path / "x.jpg", exif=b"Exif\x00\x00" + block)
    with Image.open(path) as opened:
        assert opened.getexif().get_ifd(ExifTags.IFD.IFD1), "the file has no thumbnail, so this shows nothing"
    for everything in (False, True):
        found = read_credits(path, everything=everything)
        assert b"Ana" in (found.exif or b"")
        assert thumbnail[:40] not in (found.exif or b"")


def test_iptc_becomes_the_xmp_that_stands_for_it(tmp_path):
    path = photo(tmp_path / "x.jpg")
    content = path.read_bytes()
    path.write_bytes(content[:2] + iptc() + content[2:])
    made = as_saved(path)
    assert properties(made.info["XML:com.adobe.xmp"]) == {
        "creator": "Ünal Artist",
        "Credit": "Agency",
        "rights": "(c) Agency",
    }
    root = ElementTree.fromstring(made.info["XML:com.adobe.xmp"])
    assert root.find(f".//{DC}creator/{RDF}Seq/{RDF}li") is not None  # as XMP's schema says: ordered, and by language
    assert root.find(f".//{DC}rights/{RDF}Alt/{RDF}li").attrib == {
        "{http://www.w3.org/XML/1998/namespace}lang": "x-default"
    }


BOMB = b"""<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>
<x:xmpmeta xmlns:x="adobe:ns:meta/">&c;</x:xmpmeta>"""


@pytest.mark.parametrize("packet", [BOMB, b"<x", b"\xff\xfe\x00", b"<a/>", b"<a>" * 3000, b"x" * 2**21])
def test_xmp_that_cannot_be_trusted_is_left_out_and_said(packet, tmp_path):
    path = photo(tmp_path / "x.webp", xmp=packet)
    found = read_credits(path)
    assert found.xmp is None
    assert found.notes == ("x.webp has XMP that cannot be read, which is left out.",)


def test_pictures_without_any_get_none(tmp_path):
    found = read_credits(photo(tmp_path / "x.jpg"))
    assert (found.xmp, found.exif, found.notes) == (None, None, ())
    assert Frame(xmp=None, exif=None).png(np.zeros((2, 2, 3), np.uint8)) == Frame().png(np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("keep", [False, True])
def test_folders_keep_the_creator_and_single_calls_keep_nothing_as_ever(keep, tmp_path):
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "x.jpg", exif=exif(), xmp=XMP, dpi=(300, 300))
    settings = ["--preset", "random", *(["--keep-exif"] if keep else [])]
    assert main(["protect", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *settings]) == 0
    with Image.open(tmp_path / "out" / "x_protected.png") as made:
        found = made.getexif()
        assert found[315] == "Ana Artist"
        assert (271 in found) == keep
        assert bool(found.get_ifd(34853)) == keep
        assert made.size == (20, 30)  # upright
        assert made.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert main(["protect", str(tmp_path / "in" / "x.jpg"), "--out", str(tmp_path / "single"), *settings[:2]]) == 0
    with Image.open(tmp_path / "single" / "x_protected_00001_.png") as made:
        assert not made.getexif()
        assert "XML:com.adobe.xmp" not in made.info
