"""The converter from UI workflows to API prompts, on graphs made by hand."""

from __future__ import annotations

import json

import pytest
from antipure.methods.errors import AntiPureError

MUTED, BYPASSED = 2, 4


@pytest.fixture
def twins(tool):
    return tool("api_twins")


def node(node_id: int, kind: str, values: list | dict, mode: int = 0, **wires: tuple[int, str]) -> dict:
    """A node with some widget values; wires: input name -> (link, type)."""
    inputs = [{"name": name, "type": wire, "link": link} for name, (link, wire) in wires.items()]
    return {"id": node_id, "type": kind, "mode": mode, "inputs": inputs, "widgets_values": values}


def load(node_id: int = 1, mode: int = 0) -> dict:
    return node(node_id, "LoadImage", [f"{node_id}.png", "image"], mode)


def protect(node_id: int = 3, mode: int = 0, link: int | None = 1) -> dict:
    values = ["strong", 8, 100, 5, "randomize"]
    return node(node_id, "AntiPureProtect", values, mode, image=(link, "IMAGE"), mask=(None, "MASK"))


def preview(link: int) -> dict:
    return node(9, "PreviewImage", [], images=(link, "IMAGE"))


def graph(nodes: list[dict], *links: list) -> dict:
    return {"nodes": nodes, "links": list(links), "version": 0.4}


def inputs(twins, nodes: list[dict], *links: list) -> dict[str, dict]:
    return {key: made["inputs"] for key, made in twins.to_prompt(graph(nodes, *links)).items()}


def test_values_get_names_and_what_the_server_does_not_take_is_left_out(twins):
    workflow = graph([protect(), {"id": 4, "type": "MarkdownNote", "widgets_values": ["text"]}, load()])
    workflow["nodes"][0]["title"] = "Mine"
    workflow["nodes"][0]["inputs"][0]["link"] = 7
    workflow["links"] = [[7, 1, 0, 3, 0, "IMAGE"]]
    assert twins.to_prompt(workflow) == {
        "1": {"class_type": "LoadImage", "_meta": {"title": "LoadImage"}, "inputs": {"image": "1.png"}},
        "3": {
            "class_type": "AntiPureProtect",
            "_meta": {"title": "Mine"},
            "inputs": {
                "image": ["1", 0],
                "preset": "strong",
                "levels": 8,
                "steps": 100,
                "seed": 5,
                "visibility": "full",
                "reproducible": False,
            },
        },
    }


def test_order_is_that_of_the_nodes_own_inputs(twins):
    prompt = inputs(twins, [protect(10), load(2)], [1, 2, 0, 10, 0, "IMAGE"])
    assert list(prompt) == ["2", "10"]
    assert list(prompt["10"]) == ["image", "preset", "levels", "steps", "seed", "visibility", "reproducible"]


def test_the_widget_under_a_seed_takes_a_place_in_the_middle_too(twins):
    values = [7, "increment", 20, 6.5, "euler", "normal", 0.5]
    assert inputs(twins, [node(1, "KSampler", values)])["1"] == {
        "seed": 7,
        "steps": 20,
        "cfg": 6.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 0.5,
    }


def test_a_file_older_than_an_input_gets_its_default(twins):
    assert inputs(twins, [node(1, "AntiPureProtect", ["paper"])])["1"] == {
        "preset": "paper",
        "levels": 8.0,
        "steps": 40,
        "seed": 0,
        "visibility": "full",
        "reproducible": False,
    }
    trained = inputs(twins, [node(1, "TrainLoraNode", [2])])["1"]
    assert trained["batch_size"] == 2
    assert trained["existing_lora"] == "[None]"


def test_values_by_name(twins):
    assert inputs(twins, [node(1, "SaveImage", {"filename_prefix": "a/b", "shown": 1})])["1"] == {
        "filename_prefix": "a/b"
    }


def test_a_widget_turned_to_an_input_keeps_its_place_among_the_values(twins):
    patched = node(2, "EmptyLatentImage", [64, 32, 3], height=(1, "INT"))
    prompt = inputs(twins, [node(1, "TrainLoraNode", []), patched], [1, 1, 2, 2, 0, "INT"])
    assert prompt["2"] == {"width": 64, "height": ["1", 2], "batch_size": 3}


def test_a_primitive_gives_its_value(twins):
    primitive = {"id": 1, "type": "PrimitiveNode", "widgets_values": [0, "fixed"]}
    patched = node(2, "EmptyLatentImage", [64, 32, 3], width=(1, "INT"))
    assert inputs(twins, [primitive, patched], [1, 1, 0, 2, 0, "INT"]) == {
        "2": {"width": 0, "height": 32, "batch_size": 3}
    }


def test_reroutes_are_followed(twins):
    reroutes = [node(i, "Reroute", [], **{"": (link, "*")}) for i, link in ((4, 1), (5, 2))]
    links = [1, 3, 1, 4, 0, "IMAGE"], [2, 4, 0, 5, 0, "IMAGE"], [3, 5, 0, 9, 0, "IMAGE"]
    prompt = inputs(twins, [protect(link=None), *reroutes, preview(3)], *links)
    assert prompt.keys() == {"3", "9"}
    assert prompt["9"] == {"images": ["3", 1]}


def test_what_a_muted_node_gives_is_missing(twins):
    links = [1, 1, 0, 3, 0, "IMAGE"], [2, 3, 0, 9, 0, "IMAGE"]
    assert inputs(twins, [load(), protect(mode=MUTED), preview(2)], *links) == {"1": {"image": "1.png"}, "9": {}}


@pytest.mark.parametrize("output", [0, 1])  # the second: a DENOISER stands beside it, so the first IMAGE it is
def test_a_bypassed_node_lets_the_picture_through(twins, output):
    links = [1, 1, 0, 3, 0, "IMAGE"], [2, 3, output, 9, 0, "IMAGE"], [3, 2, 0, 3, 1, "DENOISER"]
    bypassed = protect(mode=BYPASSED)
    bypassed["inputs"].insert(1, {"name": "denoiser", "type": "DENOISER", "link": 3})
    denoiser = node(2, "AntiPureLoadDenoiser", ["bundled", "fp32", "off"])
    assert inputs(twins, [load(), denoiser, bypassed, preview(2)], *links)["9"] == {"images": ["1", 0]}


def test_of_two_pictures_the_one_beside_the_output_goes_through(twins):
    both = node(3, "ImageBatch", [], BYPASSED, image1=(1, "IMAGE"), image2=(2, "IMAGE"))
    links = [1, 1, 0, 3, 0, "IMAGE"], [2, 2, 0, 3, 1, "IMAGE"], [3, 3, 0, 9, 0, "IMAGE"]
    assert inputs(twins, [load(1), load(2), both, preview(3)], *links)["9"] == {"images": ["1", 0]}
    links[2][2] = 1
    assert inputs(twins, [load(1), load(2), both, preview(3)], *links)["9"] == {"images": ["2", 0]}


def test_a_bypassed_node_without_the_type_gives_nothing(twins):
    text = node(9, "CLIPTextEncode", [""], clip=(2, "CLIP"))
    links = [1, 1, 0, 3, 0, "IMAGE"], [2, 3, 0, 9, 0, "CLIP"]
    assert inputs(twins, [load(), protect(mode=BYPASSED), text], *links)["9"] == {"text": ""}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (node(1, "Unheard", []), "'Unheard' is no known node"),
        (node(4, "CheckpointLoaderSimple", []), "Node 4 (CheckpointLoaderSimple) has no value for 'ckpt_name'."),
        (node(4, "PreviewImage", [], pictures=(1, "IMAGE")), "Node 4 (PreviewImage) has no input 'pictures'."),
    ],
)
def test_what_is_not_known_is_named(twins, wrong, sentence):
    with pytest.raises(AntiPureError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        twins.to_prompt(graph([load(8), wrong], [1, 8, 0, 4, 0, "IMAGE"]))


def test_long_inputs_stand_below_each_other(twins):
    short = {"1": {"class_type": "A", "_meta": {"title": "ä"}, "inputs": {"a": ["2", 0], "b": 0.5}}}
    assert twins.to_text(short) == (
        '{\n  "1": {\n    "class_type": "A",\n    "_meta": { "title": "ä" },\n'
        '    "inputs": { "a": ["2", 0], "b": 0.5 }\n  }\n}\n'
    )
    long = {
        key: {"class_type": "A", "_meta": {"title": ""}, "inputs": {f"name_{i}": i for i in range(20)}} for key in "12"
    }
    text = twins.to_text(long)
    assert json.loads(text) == long
    assert max(map(len, text.splitlines())) <= 120


def test_check_and_write(twins, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(twins, "WORKFLOWS", tmp_path / "api")
    (tmp_path / "api").mkdir()
    source, twin = tmp_path / "one.json", tmp_path / "api" / "one.json"
    source.write_text(json.dumps(graph([load()])), encoding="utf-8")
    before = source.read_bytes()
    assert twins.main(["--check"]) == 1
    assert "one.json" in capsys.readouterr().out
    assert not twin.exists()
    assert twins.main(["--write"]) == 0
    assert twins.main(["--check"]) == 0
    assert source.read_bytes() == before
    assert json.loads(twin.read_text(encoding="utf-8"))["1"]["inputs"] == {"image": "1.png"}
    twin.write_text(twin.read_text(encoding="utf-8").replace("1.png", "2.png"), encoding="utf-8")
    assert twins.main(["--check"]) == 1
    source.write_text(json.dumps(graph([node(1, "Unheard", [])])), encoding="utf-8")
    with pytest.raises(SystemExit, match="one.json: 'Unheard'"):
        twins.main(["--check"])
