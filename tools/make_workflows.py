"""Write the workflows of ComfyUI's template browser, workflows/<name>.json, from their API twins.

    python -m tools.make_workflows                         # the .json files
    python -m tools.make_workflows --thumbnails FOLDER     # the .jpg files too, from the output of `antipure demo`
    python -m tools.make_workflows --report SHEET          # that of robustness_report, from the sheet it saved
    python -m tools.make_workflows --patches FOLDER        # those of LoRA Patching, from the output of
                                                           # `antipure run lora_patch_defensive` and `..._evaluation`

The API files in workflows/api/ say what is wired to what; workflow_layouts.py and patch_layouts.py say where it
stands, in which colours, and what the notes say. Nothing is edited by hand in the files written.
"""

from __future__ import annotations

import argparse
import io
import json
import uuid
from pathlib import Path

from antipure.cli.executor import NODES, execution_order
from antipure.cli.graph import WORKFLOWS, is_link, read_workflow
from antipure.methods.figures.inspection_sheet import BACKGROUND, CAPTION, CELL, MARGIN, SOFT
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tools.host_nodes import HOST_NODES
from tools.patch_layouts import PATCH_LAYOUTS
from tools.workflow_layouts import LAYOUTS as PROTECTION_LAYOUTS
from tools.workflow_layouts import Box, Group, Layout, Note

LAYOUTS = {**PROTECTION_LAYOUTS, **PATCH_LAYOUTS}
FOLDER = WORKFLOWS.parent
REPORT = "robustness_report"

# Title bar and body of a node.
COLOURS = {
    "AntiPureProtect": ("#2a4a66", "#22303d"),
    "AntiPureDiffusionPurify": ("#66332f", "#3b2625"),
    "AntiPureMetrics": ("#35552d", "#27331f"),
    "AntiPureInspect": ("#35552d", "#27331f"),
    "AntiPureRobustnessReport": ("#35552d", "#27331f"),
    "TrainLoraNode": ("#463a66", "#2d283d"),
    "AntiPureSeedTraining": ("#463a66", "#2d283d"),
    "AntiPureApplyTrainedLora": ("#463a66", "#2d283d"),
    "AntiPureTrainLoraPatch": ("#463a66", "#2d283d"),
    "AntiPureTrainModelPatch": ("#463a66", "#2d283d"),
    "AntiPureLoraPatchApply": ("#463a66", "#2d283d"),
    "AntiPureEditFace": ("#66332f", "#3b2625"),
    "AntiPureDisruptProtect": ("#2a4a66", "#22303d"),
    "AntiPureDefenceReport": ("#35552d", "#27331f"),
}
NOTE_COLOURS = ("#4a4030", "#2e2a22")
GROUP_PADDING, GROUP_HEADER, NODE_TITLE = 20, 50, 30
SEEDS = ("seed", "noise_seed")


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
    for wire in links:
        link, source, slot = wire[:3]
        output = nodes[str(source)]["outputs"][slot]
        wire[5] = output["type"]  # the input may take several types
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
    node_class = HOST_NODES.get(kind) or NODES[kind]
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
    names = getattr(node_class, "RETURN_NAMES", None) or node_class.RETURN_TYPES
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
# Workflows that are neither here nor in `PATCH_PICTURES` need a real model for a picture: their thumbnails name their
# steps.
THUMBNAILS = {
    "protect": (((0, 0), (0, 1)), ((1, 0), (1, 1))),
    "purify": (((0, 1), (0, 3)), ((1, 0), (1, 2))),
    "measure": (((1, 2), (1, 3)), ((2, 0), (2, 1))),
    "protect_and_purify": None,
}
# Those of LoRA Patching: beginnings of the names of what their SaveImage nodes write, one row of four pictures each.
# A single one is the whole picture.
PATCH_PICTURES = {
    "lora_patch_defensive": ("edited_original", "edited_patched"),
    "lora_patch_evaluation": ("defence_report",),
}


def sheet_cell(sheet: Image.Image, row: int, column: int) -> Image.Image:
    """One picture of a full inspection sheet (three rows of four), without caption."""
    last = CAPTION + CELL
    height = (sheet.height - last - 4 * MARGIN) // 2  # of the first two rows, captions included
    left, top = MARGIN + column * (CELL + MARGIN), MARGIN + row * (height + MARGIN) + CAPTION
    return sheet.crop((left, top, left + CELL, top + (CELL if row == 2 else height - CAPTION)))


def make_thumbnail(sheet: Image.Image, cells: tuple[tuple[tuple[int, int], ...], ...] | None) -> bytes:
    """Some cells of the sheet side by side, or all of it, as `to_jpeg` makes it."""
    picture = sheet
    if cells is not None:
        rows = [[sheet_cell(sheet, *cell) for cell in row] for row in cells]
        size = (sum(part.width for part in rows[0]), sum(row[0].height for row in rows))
        picture, top = Image.new("RGB", size, BACKGROUND), 0
        for row in rows:
            for i, part in enumerate(row):
                picture.paste(part, (i * CELL, top))
            top += row[0].height
    return to_jpeg(picture)


def draw_steps(groups: tuple[Group, ...]) -> bytes:
    """A square JPEG with the titles of the groups, from top to bottom."""
    picture = Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), BACKGROUND)
    draw, edge, gap = ImageDraw.Draw(picture), 24, 18
    height = min(80, (THUMBNAIL_SIDE - 2 * edge - gap * (len(groups) - 1)) // len(groups))
    top = (THUMBNAIL_SIDE - len(groups) * height - (len(groups) - 1) * gap) // 2
    for i, group in enumerate(groups):
        title = group.title.split(" · ")[-1]
        draw.rounded_rectangle((edge, top, THUMBNAIL_SIDE - edge, top + height), 10, fill=group.colour)
        draw.text((THUMBNAIL_SIDE // 2, top + height // 2), title, BACKGROUND, ImageFont.load_default(28), anchor="mm")
        top += height
        if i < len(groups) - 1:
            draw.line((THUMBNAIL_SIDE // 2, top, THUMBNAIL_SIDE // 2, top + gap), SOFT, 4)
        top += gap
    return to_jpeg(picture)


def to_jpeg(picture: Image.Image) -> bytes:
    """A square JPEG of at most 60 kB."""
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
    for name, layout in LAYOUTS.items():
        if name in PATCH_PICTURES or name == REPORT:
            continue
        drawn = make_thumbnail(sheet, THUMBNAILS[name]) if name in THUMBNAILS else draw_steps(layout.groups)
        (FOLDER / f"{name}.jpg").write_bytes(drawn)


def write_report_thumbnail(sheet: Path) -> None:
    """The thumbnail of `REPORT`: the top of the sheet, as high as wide."""
    with Image.open(sheet) as opened:
        top = opened.convert("RGB").crop((0, 0, opened.width, min(opened.width, opened.height)))
    (FOLDER / f"{REPORT}.jpg").write_bytes(to_jpeg(top))


def pairs_of_rows(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures of equal size, four to a line: the first four of every row under each other, then the next four."""
    width, height = rows[0][0].size
    lines = [row[i : i + 4] for i in range(0, len(rows[0]), 4) for row in rows]
    picture = Image.new("RGB", (4 * width, len(lines) * height), BACKGROUND)
    for y, line in enumerate(lines):
        for x, part in enumerate(line):
            picture.paste(part, (x * width, y * height))
    return picture


def write_patch_thumbnails(output: Path) -> None:
    """Write the thumbnails of `PATCH_PICTURES` from what the workflows saved below the folder `output`.

    They must have run once each in a folder that was empty before. The others of LoRA Patching name their steps.
    """
    for name in PATCH_LAYOUTS:
        rows = []
        for prefix in PATCH_PICTURES.get(name, ()):
            files = sorted((output / "antipure").glob(f"{prefix}_*.png"))[:8]
            if not files:
                raise SystemExit(
                    f"{output} holds no antipure/{prefix}_*.png; run `antipure run {name} --out {output}`."
                )
            rows.append([Image.open(file).convert("RGB") for file in files])
        if not rows:
            drawn = draw_steps(LAYOUTS[name].groups)
        else:
            drawn = to_jpeg(rows[0][0] if len(rows) == 1 else pairs_of_rows(rows))
        (FOLDER / f"{name}.jpg").write_bytes(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thumbnails", type=Path, metavar="FOLDER", help="output of `antipure demo`; writes the .jpg")
    parser.add_argument(
        "--patches", type=Path, metavar="FOLDER", help="where LoRA Patching's workflows ran: their .jpg"
    )
    parser.add_argument("--report", type=Path, metavar="SHEET", help="a sheet of robustness_report: its .jpg")
    args = parser.parse_args()
    for name in LAYOUTS:
        (FOLDER / f"{name}.json").write_text(to_json(build_workflow(name)), encoding="utf-8")
    if args.thumbnails:
        write_thumbnails(args.thumbnails)
    if args.report:
        write_report_thumbnail(args.report)
    if args.patches:
        write_patch_thumbnails(args.patches)


if __name__ == "__main__":
    main()
