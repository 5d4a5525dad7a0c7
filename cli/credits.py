"""Who made a picture: the creator and rights fields of EXIF, IPTC and XMP, and what else of them is asked for.

Places, cameras, dates and whatever else programs write into a file are left out unless they are asked for. Copies of
the picture inside it (thumbnails, makers' notes with previews) are always left out: nobody protected them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

from .pictures import opened_picture
from .terminal import one_line

MOST_XMP = 2**20  # bytes
_RDF, _XML = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://www.w3.org/XML/1998/namespace"
_DC, _XMP = "http://purl.org/dc/elements/1.1/", "http://ns.adobe.com/xap/1.0/"
_RIGHTS, _PHOTOSHOP = f"{_XMP}rights/", "http://ns.adobe.com/photoshop/1.0/"
_IPTC, _PLUS = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "http://ns.useplus.org/ldf/xmp/1.0/"
_CC, _TIFF = "http://creativecommons.org/ns#", "http://ns.adobe.com/tiff/1.0/"
_PREFIXES = {
    "rdf": _RDF, "x": "adobe:ns:meta/", "dc": _DC, "xmp": _XMP, "xmpRights": _RIGHTS, "photoshop": _PHOTOSHOP,
    "Iptc4xmpCore": _IPTC, "plus": _PLUS, "cc": _CC, "tiff": _TIFF,
}  # fmt: skip
# Properties that say who made a picture and what may be done with it; of some namespaces all do.
_WHOLE = (_RIGHTS, _PLUS, _CC)
_SINGLE = {
    *((_DC, name) for name in ("creator", "rights", "publisher")),
    *((_PHOTOSHOP, name) for name in ("AuthorsPosition", "Credit", "Source")),
    (_IPTC, "CreatorContactInfo"),
}
_COPIES = {(_XMP, "Thumbnails"), (_TIFF, "Orientation")}  # pixels, and how they lay before they were turned upright
# IPTC-IIM's datasets, and the XMP properties that stand for them (IPTC Photo Metadata Standard).
_DATASETS = {
    (2, 80): (_DC, "creator", "Seq"),
    (2, 85): (_PHOTOSHOP, "AuthorsPosition", ""),
    (2, 110): (_PHOTOSHOP, "Credit", ""),
    (2, 115): (_PHOTOSHOP, "Source", ""),
    (2, 116): (_DC, "rights", "Alt"),
}
_CREATORS = (ExifTags.Base.Artist, ExifTags.Base.Copyright, ExifTags.Base.XPAuthor)
_EXIF_IFD, _MAKER_NOTE, _ORIENTATION, _TIFF_XMP = 0x8769, 0x927C, 274, 700
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\x00"


@dataclass(frozen=True)
class Credits:
    """xmp: a packet for PNG's iTXt chunk; exif: bytes for its eXIf chunk. None where there is nothing to keep.
    notes: in words, what could not be read."""

    xmp: str | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()


def read_credits(path: Path, *, everything: bool = False) -> Credits:
    """The creator's fields of a picture file, or with `everything` all EXIF and XMP but copies of the picture.

    IPTC fields are kept as the XMP properties that stand for them. Raises `AntiPureError` as `read_picture` does.
    """
    with opened_picture(path) as opened:
        notes: list[str] = []
        described = _packet(opened)
        root = None
        if described is not None:
            root = _parsed(described)
            if root is None:
                notes.append(f"{one_line(path.name)} has XMP that cannot be read, which is left out.")
        kept = list(_properties(root, everything)) if root is not None else []
        kept += [element for element in _from_iptc(opened) if not any(element.tag == known.tag for known in kept)]
        try:
            exif = _exif(opened, everything)
        except Exception:  # damaged tags make Pillow raise nearly anything
            exif = None
            notes.append(f"{one_line(path.name)} has EXIF that cannot be read, which is left out.")
        return Credits(_written(kept) if kept else None, exif, tuple(notes))


def _exif(opened: Image.Image, everything: bool) -> bytes | None:
    found, kept = opened.getexif(), Image.Exif()
    if not everything:
        kept.update({tag: found[tag] for tag in _CREATORS if tag in found})
        return kept.tobytes() if len(kept) else None
    inner = {tag: found.get_ifd(tag) for tag in (_EXIF_IFD, ExifTags.IFD.GPSInfo)}
    copies = {_ORIENTATION, _TIFF_XMP, ExifTags.Base.IPTCNAA, ExifTags.Base.ImageResources, *inner}
    # TIFF's own tags say how its pixels lie in that file.
    layout = set(range(254, 260)) | {262, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 34675}
    kept.update(
        {tag: value for tag, value in found.items() if tag not in copies | layout | {ExifTags.Base.InterColorProfile}}
    )
    for tag, values in inner.items():
        if values:
            kept.get_ifd(tag).update({key: value for key, value in values.items() if key != _MAKER_NOTE})
            kept[tag] = kept.get_ifd(tag)
    return kept.tobytes() if len(kept) else None


def _packet(opened: Image.Image) -> bytes | None:
    """The file's XMP, wherever its kind keeps it."""
    found = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp")
    if not found and hasattr(opened, "applist"):  # JPEG before Pillow 11
        found = next(
            (content[len(_XMP_HEADER) :] for _, content in opened.applist if content.startswith(_XMP_HEADER)), None
        )
    if not found and hasattr(opened, "tag_v2"):
        found = opened.tag_v2.get(_TIFF_XMP)
    if isinstance(found, tuple):  # TIFF's bytes as numbers
        found = bytes(found)
    return found.encode() if isinstance(found, str) else found or None


def _parsed(packet: bytes) -> ElementTree.Element | None:
    """The packet's rdf:RDF. None for what is no XMP, or defines entities, of which a few bytes may make gigabytes."""
    packet = packet.strip(b"\x00 \r\n\t")
    if len(packet) > MOST_XMP or re.search(rb"<!\s*(DOCTYPE|ENTITY)", packet, re.IGNORECASE):
        return None
    try:
        root = ElementTree.fromstring(packet)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        return None
    return root if root.tag == f"{{{_RDF}}}RDF" else root.find(f".//{{{_RDF}}}RDF")


def _name(tag: str) -> tuple[str, str]:
    namespace, _, name = tag[1:].rpartition("}") if tag.startswith("{") else ("", "", tag)
    return namespace, name


def _properties(root: ElementTree.Element, everything: bool) -> Iterator[ElementTree.Element]:
    """What is kept of the packet; properties that are written as attributes become elements."""
    for description in root.findall(f"{{{_RDF}}}Description"):
        attributes = [ElementTree.Element(tag) for tag in description.attrib]
        for element, text in zip(attributes, description.attrib.values(), strict=True):
            element.text = text
        for element in (*attributes, *description):
            name = _name(element.tag) if isinstance(element.tag, str) else ("", "")
            if name[0] in ("", _RDF, _XML) or name in _COPIES:
                continue
            if everything or name[0] in _WHOLE or name in _SINGLE:
                yield element


def _from_iptc(opened: Image.Image) -> Iterator[ElementTree.Element]:
    try:
        found = IptcImagePlugin.getiptcinfo(cast(ImageFile.ImageFile, opened)) or {}
    except Exception:  # damaged records make Pillow raise nearly anything; a picture is read without them
        return
    for dataset, (namespace, name, kind) in _DATASETS.items():
        values = found.get(dataset)
        texts = [_text(value) for value in (values if isinstance(values, list) else [values]) if value]
        if not texts:
            continue
        element = ElementTree.Element(f"{{{namespace}}}{name}")
        if not kind:
            element.text = texts[0]
        else:
            inside = ElementTree.SubElement(element, f"{{{_RDF}}}{kind}")
            for text in texts[:1] if kind == "Alt" else texts:
                item = ElementTree.SubElement(inside, f"{{{_RDF}}}li")
                item.text = text
                if kind == "Alt":
                    item.set(f"{{{_XML}}}lang", "x-default")
        yield element


def _text(value: bytes) -> str:
    """IPTC says how texts are coded in a record that most programs leave out: UTF-8 where it is, else Latin-1."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _written(properties: list[ElementTree.Element]) -> str:
    for prefix, namespace in _PREFIXES.items():
        ElementTree.register_namespace(prefix, namespace)
    root = ElementTree.Element("{adobe:ns:meta/}xmpmeta")
    description = ElementTree.SubElement(ElementTree.SubElement(root, f"{{{_RDF}}}RDF"), f"{{{_RDF}}}Description")
    description.set(f"{{{_RDF}}}about", "")
    for element in properties:
        element.tail = None
        description.append(element)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{body}<?xpacket end="r"?>'
