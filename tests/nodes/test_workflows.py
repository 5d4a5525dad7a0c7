"""The shipped workflows: UI files, their API twins, layout and thumbnails."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
import torch
from antipure.cli.core_nodes import ANY
from antipure.cli.executor import NODES, Executor, check_node, check_nodes, execution_order
from antipure.cli.graph import read_workflow
from antipure.methods.errors import AntiPureError
from antipure.methods.figures.inspection_sheet import inspection_sheet
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
SERVER_ONLY = ["lora_patch_sd", "sd_protect", "sd_purification_customization"]
IN_PROCESS = [
    "lora_patch_defensive",
    "lora_patch_evaluation",
    "measure",
    "protect",
    "protect_and_purify",
    "purify",
    "robustness_report",
]
TITLE_BAR = 30

each_workflow = pytest.mark.parametrize("name", NAMES)


def read_ui(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def classes(tool) -> dict:
    """Every node of the shipped workflows: this pack's, its stand-ins, and what is known of ComfyUI's own."""
    return {**NODES, **tool("host_nodes").HOST_NODES}


def widget_values(node: dict, classes: dict) -> dict:
    """Names for `widgets_values`, in the order ComfyUI's frontend reads them."""
    if node["type"] == "LoadImage":  # the core node has a combo and the upload button
        image, button = node["widgets_values"]
        assert button == "image"
        return {"image": image}
    values, named = list(node["widgets_values"]), {}
    types = classes[node["type"]].INPUT_TYPES()
    for name, (kind, *_) in {**types.get("required", {}), **types.get("optional", {})}.items():
        if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN"):
            named[name] = values.pop(0)
            if name == "seed":
                assert values.pop(0) == "fixed"
    assert values == []
    return named


def to_api(workflow: dict, classes: dict) -> dict:
    """UI format to API format, as the frontend does when it queues a workflow."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs = widget_values(node, classes)
        inputs.update({i["name"]: sources[i["link"]] for i in node["inputs"] if i["link"] is not None})
        prompt[str(node["id"])] = {"class_type": node["type"], "_meta": {"title": node["title"]}, "inputs": inputs}
    return prompt


def rectangle(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, with the title bar."""
    (x, y), (w, h) = node["pos"], node["size"]
    return x, y - TITLE_BAR, x + w, y + h


def apart(a: tuple, b: tuple, gap: float = 0) -> bool:
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]


def test_names():
    assert sorted([*SERVER_ONLY, *IN_PROCESS]) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES


@each_workflow
def test_ui_and_api_are_the_same_graph(name, classes, tool):
    prompt = read_workflow(name)
    rest = tool("host_nodes").TRAIN_LORA_REST
    for node in prompt.values():
        if node["class_type"] == "TrainLoraNode":  # what not every version has, at core's own defaults
            assert {key: node["inputs"].pop(key) for key in rest} == rest
    assert to_api(read_ui(name), classes) == prompt


@pytest.mark.parametrize("name", IN_PROCESS)
def test_api_workflow_is_valid(name):
    prompt = read_workflow(name)
    check_nodes(prompt)
    for node_id in execution_order(prompt):
        check_node(prompt, node_id)


@pytest.mark.parametrize("name", SERVER_ONLY)
def test_what_only_comfyui_can_run_says_so_in_one_sentence(name, classes, tmp_path):
    prompt = read_workflow(name)
    assert {node["class_type"] for node in prompt.values()} <= classes.keys()
    with pytest.raises(AntiPureError) as caught:
        Executor(tmp_path).run(prompt)
    sentence = str(caught.value)
    assert "--server" in sentence
    assert "CheckpointLoaderSimple" in sentence
    assert "AntiPure" not in sentence
    assert "\n" not in sentence
    assert not list(tmp_path.iterdir())


@each_workflow
def test_ui_file_is_what_the_tool_writes(name, tool):
    make_workflows = tool("make_workflows")
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == make_workflows.to_json(
        make_workflows.build_workflow(name)
    )


@each_workflow
def test_links_are_consistent(name):
    workflow = read_ui(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, source_slot, target, target_slot, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"]
        assert socket["link"] == link
        assert output["type"] == kind
        assert kind in socket["type"].split(",") or socket["type"] == ANY
    used = [i["link"] for node in nodes.values() for i in node["inputs"] if i["link"] is not None]
    ends = [link for node in nodes.values() for o in node["outputs"] for link in o["links"] or []]
    known = [link[0] for link in workflow["links"]]
    assert sorted(used) == sorted(ends) == sorted(known)
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(known)
    assert workflow["version"] == 0.4
    assert {"groups", "config", "extra"} <= workflow.keys()


@each_workflow
def test_outputs_are_the_nodes_own(name, classes):
    for node in read_ui(name)["nodes"]:
        if node["type"] != "MarkdownNote":
            node_class = classes[node["type"]]
            names = getattr(node_class, "RETURN_NAMES", None) or node_class.RETURN_TYPES
            assert [(o["name"], o["type"]) for o in node["outputs"]] == list(
                zip(names, node_class.RETURN_TYPES, strict=True)
            )


@each_workflow
def test_nothing_overlaps(name):
    workflow = read_ui(name)
    for a, b in itertools.combinations(workflow["nodes"], 2):
        assert apart(rectangle(a), rectangle(b), gap=20), (a["title"], b["title"])
    frames = {}
    for group in workflow["groups"]:
        x, y, w, h = group["bounding"]
        frames[group["title"]] = (x, y, x + w, y + h)
    for (_, a), (_, b) in itertools.combinations(frames.items(), 2):
        assert apart(a, b)
    for node, (title, frame) in itertools.product(workflow["nodes"], frames.items()):
        left, top, right, bottom = rectangle(node)
        inside = frame[0] < left and frame[1] < top and right < frame[2] and bottom < frame[3]
        assert inside or apart(rectangle(node), frame), (node["title"], title)


@each_workflow
def test_notes_and_groups(name):
    workflow = read_ui(name)
    notes = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert 1 <= len(notes) <= 2
    assert any("**Limits.**" in note["widgets_values"][0] for note in notes)
    assert all(group["title"] for group in workflow["groups"])


@each_workflow
def test_thumbnail(name):
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size <= 60_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (512, 512)  # the browser's cards are square


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (90, 60), (700, 512)])
def test_thumbnail_shows_the_cells_it_names(tool, size):
    make_workflows = tool("make_workflows")
    colours = {"original": 0.2, "protected": 0.4, "purified_clean": 0.6, "purified": 0.8}
    pictures = {name: torch.full((1, 3, *size), value) for name, value in colours.items()}
    array = (inspection_sheet(**pictures)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    sheet = Image.fromarray(array)
    for column, value in enumerate(colours.values()):
        cell = make_workflows.sheet_cell(sheet, 0, column)
        assert cell.getpixel((0, 0)) == (round(value * 255),) * 3
    thumbnail = make_workflows.make_thumbnail(sheet, (((0, 0), (0, 3)), ((0, 1), (0, 2))))
    with Image.open(io.BytesIO(thumbnail)) as picture:
        assert picture.size == (512, 512)
        height = make_workflows.sheet_cell(sheet, 0, 0).height
        top = max(0, 256 - height)  # two rows of cells, centred
        left = max(0, 256 - round(256 * 256 / height))
        for place, value in zip([(left, top), (256, top), (left, 256), (256, 256)], (0.2, 0.8, 0.4, 0.6), strict=True):
            assert abs(picture.getpixel((place[0] + 8, place[1] + 8))[0] - round(value * 255)) < 8
