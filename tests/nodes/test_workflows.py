"""The shipped workflows: what the UI files hold, their API twins, their thumbnails."""

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path

import pytest
from antipure.cli.core_nodes import ANY
from antipure.cli.executor import NODES, Executor, check_node, check_nodes, execution_order
from antipure.cli.graph import read_workflow
from antipure.methods.errors import AntiPureError
from antipure.nodes import NODE_CLASS_MAPPINGS
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
SERVER_ONLY = [
    "demo_protect_latent",
    "demo_purification_customization",
    "folder_protect",
    "lora_patch_sd",
    "sd_protect",
    "sd_purification_customization",
]
IN_PROCESS = [
    "lora_patch_defensive",
    "lora_patch_evaluation",
    "measure",
    "protect",
    "protect_and_purify",
    "protect_my_picture",
    "purify",
    "robustness_report",
    "vae_protect",
]
TITLE_BAR = 30

each_workflow = pytest.mark.parametrize("name", NAMES)


UI_FILES = {
    json.loads(path.read_text(encoding="utf-8"))["extra"]["antipure"]["name"]: path for path in FOLDER.glob("*.json")
}


def read_ui(name: str) -> dict:
    return json.loads(UI_FILES[name].read_text(encoding="utf-8"))


def working_nodes(name: str) -> list[dict]:
    return [node for node in read_ui(name)["nodes"] if node["type"] != "MarkdownNote"]


@pytest.fixture
def twins(tool):
    return tool("api_twins")


def rectangle(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, with the title bar."""
    (x, y), (w, h) = node["pos"], node["size"]
    return x, y - TITLE_BAR, x + w, y + h


def apart(a: tuple, b: tuple, gap: float = 0) -> bool:
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]


def test_names():
    assert sorted([*SERVER_ONLY, *IN_PROCESS]) == NAMES
    assert sorted(UI_FILES) == NAMES
    assert sorted(FOLDER.glob("*.jpg")) == sorted(path.with_suffix(".jpg") for path in UI_FILES.values())


def test_cards_are_numbered_and_titled():
    """Their files' names are all that the template browser shows of them, and it sorts by them."""
    titles = sorted(path.stem for path in UI_FILES.values())
    assert [int(title[:2]) for title in titles] == list(range(1, len(titles) + 1))
    assert all(re.fullmatch(r"\d\d [A-Z][\w ]+", title) for title in titles)
    assert titles[0] == "01 Protect my picture"


def test_node_ids_differ_between_workflows():
    ids = [node["id"] for name in NAMES for node in read_ui(name)["nodes"]]
    assert len(ids) == len(set(ids))


WIDE = [
    "demo_protect_latent",
    "demo_purification_customization",
    "lora_patch_defensive",
    "lora_patch_evaluation",
    "lora_patch_sd",
    "sd_purification_customization",
]


@each_workflow
def test_it_opens_where_titles_can_be_read(name):
    """Below a scale of .57 nodes are drawn as coloured boxes. Old versions take the file's own view; new ones fit the
    whole graph into three quarters of the window, here of 1600×900.
    """
    right = max(node["pos"][0] + node["size"][0] for node in read_ui(name)["nodes"])
    bottom = max(node["pos"][1] + node["size"][1] for node in read_ui(name)["nodes"])
    if name not in WIDE:
        assert min(0.74 * 1600 / right, 0.74 * 900 / bottom) > 0.6
    view = read_ui(name)["extra"]["ds"]
    assert view["scale"] >= 0.7
    left = [(x + view["offset"][0]) * view["scale"] for x, *_ in (g["bounding"] for g in read_ui(name)["groups"])]
    assert 0 <= min(left) < 600
    notes = [node["pos"] for node in read_ui(name)["nodes"] if node["type"] == "MarkdownNote"]
    assert any(0 < (x + view["offset"][0]) * view["scale"] < 300 for x, _ in notes)


@each_workflow
def test_api_twin_is_what_the_ui_file_says(name, twins):
    """Mend a failure with `python -m tools.api_twins --write`."""
    prompt = twins.twin(read_ui(name))
    assert prompt == read_workflow(name)
    assert twins.to_text(prompt) == (FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", IN_PROCESS)
def test_api_workflow_is_valid(name):
    prompt = read_workflow(name)
    check_nodes(prompt)
    for node_id in execution_order(prompt):
        check_node(prompt, node_id)


@pytest.mark.parametrize("name", SERVER_ONLY)
def test_what_only_comfyui_can_run_says_so_in_one_sentence(name, twins, tmp_path):
    prompt = read_workflow(name)
    assert {node["class_type"] for node in prompt.values()} <= NODES.keys() | twins.CORE_NODES.keys()
    with pytest.raises(AntiPureError) as caught:
        Executor(tmp_path).run(prompt)
    sentence = str(caught.value)
    assert "--server" in sentence
    assert min({node["class_type"] for node in prompt.values()} - NODES.keys()) in sentence
    assert "AntiPure" not in sentence
    assert "\n" not in sentence
    assert not list(tmp_path.iterdir())


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
def test_sockets_and_widgets_are_the_nodes_own(name, twins):
    for node in working_nodes(name):
        types = twins.input_types(node["type"])
        shown = {entry["name"]: entry for entry in node["inputs"] if entry["type"] != "IMAGEUPLOAD"}
        assert shown.keys() <= types.keys()
        sockets = {key: kind for key, (kind, options) in types.items() if not twins.is_widget(kind, options)}
        assert {key: entry["type"] for key, entry in shown.items() if "widget" not in entry} == sockets
        if node["type"] in NODE_CLASS_MAPPINGS:
            assert shown.keys() == types.keys()


@each_workflow
def test_every_value_has_its_widget_and_seeds_are_fixed(name, twins):
    for node in working_nodes(name):
        seeds = [key for key in twins.input_types(node["type"]) if key in ("seed", "noise_seed")]
        values = node["widgets_values"]
        assert values.count("fixed") == len(seeds)
        widgets = [entry for entry in node["inputs"] if "widget" in entry]  # the upload button is one, with a value
        assert len(values) == len(widgets) + len(seeds)


@each_workflow
def test_outputs_are_the_nodes_own(name, twins):
    for node in working_nodes(name):
        if node["type"] in NODES:
            types = NODES[node["type"]].RETURN_TYPES
            names = getattr(NODES[node["type"]], "RETURN_NAMES", None) or types
        else:
            types = twins.CORE_NODES[node["type"]]["output"]
            names = twins.CORE_NODES[node["type"]].get("output_name", types)
        assert [(o["name"], o["type"]) for o in node["outputs"]] == list(zip(names, types, strict=True))


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


TEMPLATE_ONLY = {"protect", "protect_my_picture", "protect_and_purify", "purify", "robustness_report"}


@each_workflow
def test_what_makes_a_template_quick_is_not_in_the_shells_twin(name, twins):
    nodes = {node["id"]: node for node in read_ui(name)["nodes"]}
    small = [node for node in nodes.values() if node["properties"].get("antipure") == "template only"]
    assert [node["type"] for node in small] == ["ImageScale"] * (name in TEMPLATE_ONLY)
    prompt, whole = read_workflow(name), twins.to_prompt(read_ui(name))
    assert len(prompt) == len(whole) - len(small)
    if small:
        first = read_ui(name)["extra"]["antipure"]["first_id"]
        readers = [key for key, node in whole.items() if [str(small[0]["id"]), 0] in node["inputs"].values()]
        assert readers
        assert all(["1", 0] in prompt[str(int(key) - first)]["inputs"].values() for key in readers)
        (note,) = [n["widgets_values"][0] for n in nodes.values() if "**Time.**" in str(n["widgets_values"])]
        assert "on two CPU cores" in note
    for node in nodes.values():
        for key, value in node["properties"].get("antipure_shell", {}).items():
            shorter = whole[str(node["id"])]["inputs"][key]
            assert type(shorter) is type(value)
            assert (len(shorter) < len(value)) if isinstance(value, str) else (shorter < value)


@each_workflow
def test_thumbnail(name):
    path = UI_FILES[name].with_suffix(".jpg")
    assert path.stat().st_size <= 60_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (512, 512)  # the browser's cards are square


def test_a_thumbnail_shows_the_pictures_row_by_row(tool):
    thumbnail = tool("thumbnail")
    greys = (20, 90, 160, 230)
    sheet = thumbnail.grid([Image.new("RGB", (64, 32), (grey,) * 3) for grey in greys], 2)
    with Image.open(io.BytesIO(thumbnail.to_jpeg(sheet))) as picture:
        assert picture.size == (512, 512)  # the pictures fill 512×256 in its middle
        for place, grey in zip([(100, 160), (400, 160), (100, 350), (400, 350)], greys, strict=True):
            assert abs(picture.getpixel(place)[0] - grey) < 8


def test_a_thumbnail_without_pictures_shows_the_groups_from_top_to_bottom(tool):
    picture = tool("thumbnail").steps([{"title": "1 · First", "color": "#ff0000"}, {"title": "2", "color": "#0000ff"}])
    assert [picture.getpixel((60, y)) for y in (200, 300)] == [(255, 0, 0), (0, 0, 255)]
