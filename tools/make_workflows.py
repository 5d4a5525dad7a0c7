"""Write the workflows of ComfyUI's template browser, workflows/<name>.json, from their API twins.

    python -m tools.make_workflows                         # the .json files
    python -m tools.make_workflows --thumbnails FOLDER     # the .jpg files too, from the output of `antipure demo`

The API files in workflows/api/ say what is wired to what; the layouts below say where it stands, in which colours,
and what the notes say. Nothing is edited by hand in the files written.
"""

from __future__ import annotations

import argparse
import io
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from antipure.cli.executor import NODES, execution_order
from antipure.cli.graph import WORKFLOWS, is_link, read_workflow
from antipure.methods.inspection import BACKGROUND, CAPTION, CELL, MARGIN
from PIL import Image, ImageOps

FOLDER = WORKFLOWS.parent
Box = tuple[int, int, int, int]  # x, y, width, height; the 30-px title bar of a node stands above y

# Title bar and body of a node.
COLOURS = {
    "AntiPureProtect": ("#2a4a66", "#22303d"),
    "AntiPureDiffusionPurify": ("#66332f", "#3b2625"),
    "AntiPureMetrics": ("#35552d", "#27331f"),
    "AntiPureInspect": ("#35552d", "#27331f"),
}
NOTE_COLOURS = ("#4a4030", "#2e2a22")
BLUE, RED, GREEN, GREY = "#5b9bc4", "#c9736b", "#7fae72", "#a0a0a0"
GROUP_PADDING, GROUP_HEADER, NODE_TITLE = 20, 50, 30
SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True)
class Group:
    """A titled frame around nodes, named by their ids in the API file."""

    title: str
    colour: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A MarkdownNote."""

    title: str
    box: Box
    text: str


@dataclass(frozen=True)
class Layout:
    """Where the nodes of one workflow stand."""

    boxes: dict[str, Box]
    groups: tuple[Group, ...]
    notes: tuple[Note, ...]


DENOISERS = (
    "**Denoisers.** *bundled* is a small 64-px model that ships with this pack. Put your own (an ADM checkpoint or a "
    "diffusers folder) into **models/antipure** and press R."
)
LIMITS = (
    "**Limits.** A protection can be bypassed: whoever has the picture can wait for better tools, JPEG followed by "
    "resizing undoes much of most protections, and perturbations can be detected. Claim no more than you measured."
)

# Picture and denoiser, the one node that works, what it gives: protect and purify alike.
ONE_PICTURE = {
    "1": (400, 80, 300, 380),
    "2": (400, 520, 300, 120),
    "3": (760, 80, 360, 560),
    "4": (1180, 80, 420, 380),
    "5": (1180, 520, 420, 380),
}

LAYOUTS = {
    "protect": Layout(
        boxes=ONE_PICTURE,
        groups=(
            Group("Picture and denoiser", GREY, ("1", "2")),
            Group("Protect", BLUE, ("3",)),
            Group("Result", GREEN, ("4", "5")),
        ),
        notes=(
            Note(
                "Protect a picture",
                (0, 80, 340, 380),
                "Adds a perturbation of at most *levels* 8-bit levels per pixel, made so that a diffusion model that "
                "purifies the picture distorts its fine structure.\n\n"
                "**Reading it.** The Protect node reports the largest change, PSNR and SSIM: what the protection "
                "costs. Fewer *levels* are harder to see and protect less. *Perturbation* shows the change around "
                "mid-grey.\n\n"
                "**Saving.** Keep the PNG as it is, at its own size. What survives a purifier is measured by the "
                "workflow *protect_and_purify*.\n\n" + DENOISERS + "\n\n" + LIMITS,
            ),
        ),
    ),
    "purify": Layout(
        boxes=ONE_PICTURE,
        groups=(
            Group("Picture and denoiser", GREY, ("1", "2")),
            Group("Purify", RED, ("3",)),
            Group("Result", GREEN, ("4", "5")),
        ),
        notes=(
            Note(
                "Purify a picture",
                (0, 80, 340, 380),
                "Noises the picture a little and lets a diffusion model clean it again. It is here to measure "
                "protections: what does a purifier leave of yours?\n\n"
                "**Reading it.** *Residual* shows what purification changed, around mid-grey; black and white are ±16 "
                "levels. Purify the unprotected picture with the same seed, too, and compare the two: "
                "*protect_and_purify* does so.\n\n"
                "**Settings.** *gridpure*: timestep 10, 10 to 40 iterations. *diffpure*: timestep 100 to 150, "
                "1 iteration.\n\n"
                + DENOISERS
                + "\n\n**Limits.** Another purifier or another model gives other numbers.",
            ),
        ),
    ),
    "measure": Layout(
        boxes={
            "1": (400, 80, 300, 330),
            "2": (400, 460, 300, 330),
            "3": (760, 80, 340, 330),
            "4": (760, 460, 340, 120),
            "5": (1160, 80, 480, 710),
        },
        groups=(
            Group("Two pictures of equal size", GREY, ("1", "2")),
            Group("Measure", GREEN, ("3", "4")),
            Group("Inspection sheet", GREEN, ("5",)),
        ),
        notes=(
            Note(
                "Compare two pictures",
                (0, 80, 340, 400),
                "Load the original as *Reference* and its protected version as *Picture*. Both load the same example "
                "at first, so the first run shows no difference.\n\n"
                "**Cost.** PSNR (dB) and SSIM: higher is closer to the reference. A full use of 8 levels costs about "
                "31 dB; above 40 dB a change is hard to see.\n\n"
                "**Survival.** Load the *purified original* and the *purified protected* picture instead. Structural "
                "distortion near 0 means that no structure of the protection is left; the higher, the more the "
                "purifier got wrong. A detail ratio below 1 means that fine detail was wiped out.\n\n"
                "**Controls.** Compare with *random*, *shift* and *blocks* of AntiPure Protect at equal levels: only "
                "what exceeds them counts.\n\n"
                "**Limits.** The numbers hold for this picture and this purifier. They do not say what a model "
                "fine-tuned on it will do.",
            ),
        ),
    ),
    "protect_and_purify": Layout(
        boxes={
            "1": (0, 450, 340, 360),
            "2": (0, 870, 340, 120),
            "3": (400, 80, 360, 520),
            "4": (400, 660, 360, 280),
            "11": (400, 1000, 360, 280),
            "5": (820, 80, 320, 450),
            "6": (820, 590, 320, 450),
            "7": (1200, 80, 420, 270),
            "8": (1200, 410, 420, 270),
            "9": (1200, 740, 420, 120),
            "10": (1680, 80, 760, 780),
        },
        groups=(
            Group("1 · Picture and denoiser", GREY, ("1", "2")),
            Group("2 · Protect", BLUE, ("3", "4", "11")),
            Group("3 · Purify both, same noise", RED, ("5", "6")),
            Group("4 · Measure", GREEN, ("7", "8", "9")),
            Group("5 · Inspection sheet", GREEN, ("10",)),
        ),
        notes=(
            Note(
                "Protect, purify, measure",
                (0, 80, 340, 240),
                "1. Protects the picture with at most *levels* 8-bit levels per pixel.\n"
                "2. Purifies the protected picture, and the original with the same noise.\n"
                "3. Measures what the protection costs and what survives.\n\n"
                "It is slow on a CPU: try a face crop of 128 to 256 pixels and 40 steps first.\n\n" + DENOISERS,
            ),
            Note(
                "Reading the numbers",
                (1200, 940, 420, 300),
                "**Cost** (protected against original): PSNR and SSIM, higher is less visible. 8 levels cost about "
                "31 dB.\n\n"
                "**Survival** (purified protected against purified original): *structural distortion* near 0 means "
                "that no structure of the protection is left; the higher, the more the purifier got wrong. A *detail "
                "ratio* below 1 means that fine detail was wiped out.\n\n"
                "**Controls.** Set *preset* to *random*, *shift* and *blocks*: the same budget without adversarial "
                "structure. Only what exceeds all three counts.\n\n" + LIMITS,
            ),
        ),
    ),
}


def is_widget(kind: object) -> bool:
    """Whether ComfyUI shows an input of this type as a widget on the node."""
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")


def build_workflow(name: str) -> dict:
    """The UI workflow (litegraph 0.4) of the API workflow `name`."""
    prompt, layout = read_workflow(name), LAYOUTS[name]
    links: list[list] = []
    nodes = {}
    for order, node_id in enumerate(execution_order(prompt)):
        nodes[node_id] = _node(prompt[node_id], node_id, layout.boxes[node_id], order, links)
    for link, source, slot, *_ in links:
        output = nodes[str(source)]["outputs"][slot]
        output["links"] = [*(output["links"] or []), link]
    last = max(int(node_id) for node_id in prompt)
    notes = [_note(note, last + i, len(nodes) + i - 1) for i, note in enumerate(layout.notes, start=1)]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"antipure/workflows/{name}")),
        "revision": 0,
        "last_node_id": last + len(notes),
        "last_link_id": len(links),
        "nodes": [*sorted(nodes.values(), key=lambda node: node["id"]), *notes],
        "links": links,
        "groups": [_group(group, layout, i) for i, group in enumerate(layout.groups, start=1)],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(node: dict, node_id: str, box: Box, order: int, links: list[list]) -> dict:
    """A node as the frontend saves it: sockets first, then widgets. Appends its incoming links."""
    kind = node["class_type"]
    node_class = NODES[kind]
    types = node_class.INPUT_TYPES()
    sockets, widgets, values = [], [], []
    for section in ("required", "optional"):
        for name, (input_type, *_) in types.get(section, {}).items():
            value = node["inputs"].get(name)
            if not is_widget(input_type):
                socket = {"name": name, "type": input_type, "link": None}
                if section == "optional":
                    socket["shape"] = 7
                if is_link(value):
                    links.append([len(links) + 1, int(value[0]), value[1], int(node_id), len(sockets), input_type])
                    socket["link"] = len(links)
                sockets.append(socket)
                continue
            is_combo = isinstance(input_type, list) or (kind, name) == ("LoadImage", "image")
            widgets.append(_widget(name, "COMBO" if is_combo else input_type))
            values.append(value)
            if name in SEEDS:
                values.append("fixed")  # control_after_generate
            if (kind, name) == ("LoadImage", "image"):
                widgets.append(_widget("upload", "IMAGEUPLOAD"))
                values.append("image")  # the upload button
    names = getattr(node_class, "RETURN_NAMES", node_class.RETURN_TYPES)
    outputs = [
        {"name": name, "type": output_type, "links": None}
        for name, output_type in zip(names, node_class.RETURN_TYPES, strict=True)
    ]
    made = {
        "id": int(node_id),
        "type": kind,
        "pos": list(box[:2]),
        "size": list(box[2:]),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [*sockets, *widgets],
        "outputs": outputs,
        "title": node["_meta"]["title"],
        "properties": {"Node name for S&R": kind},
        "widgets_values": values,
    }
    if kind in COLOURS:
        made["color"], made["bgcolor"] = COLOURS[kind]
    return made


def _widget(name: str, kind: str) -> dict:
    return {"name": name, "type": kind, "widget": {"name": name}, "link": None}


def _note(note: Note, node_id: int, order: int) -> dict:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": list(note.box[:2]),
        "size": list(note.box[2:]),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": note.title,
        "properties": {},
        "widgets_values": [note.text],
        "color": NOTE_COLOURS[0],
        "bgcolor": NOTE_COLOURS[1],
    }


def _group(group: Group, layout: Layout, group_id: int) -> dict:
    boxes = [layout.boxes[node_id] for node_id in group.nodes]
    left = min(x for x, _, _, _ in boxes) - GROUP_PADDING
    top = min(y for _, y, _, _ in boxes) - NODE_TITLE - GROUP_HEADER
    right = max(x + w for x, _, w, _ in boxes) + GROUP_PADDING
    bottom = max(y + h for _, y, _, h in boxes) + GROUP_PADDING
    return {
        "id": group_id,
        "title": group.title,
        "bounding": [left, top, right - left, bottom - top],
        "color": group.colour,
        "font_size": 24,
        "flags": {},
    }


def to_json(workflow: dict) -> str:
    """The file's text."""
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


# Thumbnails --------------------------------------------------------------------------------------------------

THUMBNAIL_SIDE = 512
THUMBNAIL_BYTES = 60_000
# Rows of cells (row, column) of the inspection sheet; None is the whole sheet. The browser's cards are square.
THUMBNAILS = {
    "protect": (((0, 0), (0, 1)), ((1, 0), (1, 1))),
    "purify": (((0, 1), (0, 3)), ((1, 0), (1, 2))),
    "measure": (((1, 2), (1, 3)), ((2, 0), (2, 1))),
    "protect_and_purify": None,
}


def sheet_cell(sheet: Image.Image, row: int, column: int) -> Image.Image:
    """One picture of a full inspection sheet (three rows of four), without caption."""
    last = CAPTION + CELL
    height = (sheet.height - last - 4 * MARGIN) // 2  # of the first two rows, captions included
    left, top = MARGIN + column * (CELL + MARGIN), MARGIN + row * (height + MARGIN) + CAPTION
    return sheet.crop((left, top, left + CELL, top + (CELL if row == 2 else height - CAPTION)))


def make_thumbnail(sheet: Image.Image, cells: tuple[tuple[tuple[int, int], ...], ...] | None) -> bytes:
    """A square JPEG of at most 60 kB: some cells of the sheet side by side, or all of it."""
    picture = sheet
    if cells is not None:
        rows = [[sheet_cell(sheet, *cell) for cell in row] for row in cells]
        size = (sum(part.width for part in rows[0]), sum(row[0].height for row in rows))
        picture, top = Image.new("RGB", size, BACKGROUND), 0
        for row in rows:
            for i, part in enumerate(row):
                picture.paste(part, (i * CELL, top))
            top += row[0].height
    square = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    picture = ImageOps.pad(picture, square, Image.Resampling.LANCZOS, color=BACKGROUND)
    for quality in (90, 80, 70, 60, 50):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= THUMBNAIL_BYTES:
            return buffer.getvalue()
    raise SystemExit(f"A thumbnail stays above {THUMBNAIL_BYTES} bytes.")


def write_thumbnails(demo: Path) -> None:
    """Write workflows/<name>.jpg from the newest sheet of the preset strong in the folder `demo`."""
    sheets = sorted(demo.glob("strong_sheet_*.png"))
    if not sheets:
        raise SystemExit(f"{demo} holds no strong_sheet_*.png; run `antipure demo --out {demo}` first.")
    with Image.open(sheets[-1]) as opened:
        sheet = opened.convert("RGB")
    for name, cells in THUMBNAILS.items():
        (FOLDER / f"{name}.jpg").write_bytes(make_thumbnail(sheet, cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thumbnails", type=Path, metavar="FOLDER", help="output of `antipure demo`; writes the .jpg")
    args = parser.parse_args()
    for name in LAYOUTS:
        (FOLDER / f"{name}.json").write_text(to_json(build_workflow(name)), encoding="utf-8")
    if args.thumbnails:
        write_thumbnails(args.thumbnails)


if __name__ == "__main__":
    main()
