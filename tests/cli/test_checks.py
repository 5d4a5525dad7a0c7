"""What `antipure run` takes from workflow files: all that is harmless; the rest is one sentence before it runs."""

from __future__ import annotations

import copy
import json
import logging
import time
from pathlib import Path

import pytest
import torch
from antipure.cli import checks
from antipure.cli.checks import NODES, check_node, execution_order, needed
from antipure.cli.executor import Executor
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.main import main
from antipure.methods.errors import AntiPureError
from antipure.nodes import inputs, model_folders
from PIL import Image

MANY = 20_000


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (24, 16), (90, 120, 150)).save(path)
    return path


@pytest.fixture
def prompt(photo) -> dict:
    """Protect and save: four nodes, of which the third is Protect."""
    return set_inputs(read_workflow("protect"), [f"1.image={photo}", "3.preset=random", "3.steps=2"])


def run(prompt: dict, folder: Path, *more: str) -> tuple[int, list[Path]]:
    """The command's status and what it saved."""
    file = folder / "workflow.json"
    file.write_text(json.dumps(prompt))
    return main(["run", str(file), "--out", str(folder / "out"), *more]), sorted((folder / "out").rglob("*.png"))


def refused(prompt: dict, folder: Path, capsys, *more: str) -> str:
    """The one sentence; nothing may have been written."""
    status, files = run(prompt, folder, *more)
    error = capsys.readouterr().err
    assert (status, files) == (2, [])
    assert error.startswith("antipure: ")
    assert error.count("\n") == 1
    assert error.strip().isprintable()
    assert len(error) < 600
    return error


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2.0, 2), ("2", 2), ("2.0", 2), (2, 2)],
    ids=repr,
)
def test_whole_numbers_however_written_are_integers(prompt, value, expected):
    prompt["3"]["inputs"]["steps"] = value
    found = check_node(prompt, "3")["steps"]
    assert found == expected
    assert type(found) is int


def test_large_seeds_keep_every_digit(prompt):
    for value in (2**64 - 1, str(2**64 - 1)):
        prompt["3"]["inputs"]["seed"] = value
        assert check_node(prompt, "3")["seed"] == 2**64 - 1


@pytest.mark.parametrize("value", [2.5, True, "two", "", "NaN", float("nan"), float("inf"), [2], {"a": 1}, 10**400, -1])
def test_what_is_no_whole_number(prompt, tmp_path, capsys, value):
    prompt["3"]["inputs"]["steps"] = value
    assert "Protect (node 3): steps" in refused(prompt, tmp_path, capsys).replace("'", "")


@pytest.mark.parametrize(("key", "value"), [("levels", 10**400), ("levels", float("nan")), ("levels", "8 levels")])
def test_what_is_no_number(prompt, tmp_path, capsys, key, value):
    prompt["3"]["inputs"][key] = value
    assert f": {key} is" in refused(prompt, tmp_path, capsys)


def objective(shaped: object) -> dict:
    types = NODES["AntiPureObjective"].INPUT_TYPES()
    given = {key: options["default"] for key, (_, options) in {**types["required"], **types["optional"]}.items()}
    return {"class_type": "AntiPureObjective", "inputs": {**given, "shaped": shaped}}


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), (1, True), (0.0, False), ("true", True), ("False", False)]
)
def test_booleans(value, expected):
    assert check_node({"9": objective(value)}, "9")["shaped"] is expected


@pytest.mark.parametrize("value", ["yes", 2, [], 0.5])
def test_what_is_no_boolean(value):
    with pytest.raises(AntiPureError, match="shaped is .*; give true or false"):
        check_node({"9": objective(value)}, "9")


@pytest.mark.parametrize("value", ["true", "True", "FALSE", "false"])
def test_booleans_on_the_command_line(value):
    found = set_inputs({"9": objective(value.lower() != "true")}, [f"9.shaped={value}"])
    assert found["9"]["inputs"]["shaped"] is (value.lower() == "true")


def test_a_graph_with_a_boolean_runs(prompt, tmp_path):
    prompt["9"] = objective(True)
    prompt["3"]["inputs"] |= {"preset": "paper", "steps": 1, "objective": ["9", 0]}
    status, files = run(prompt, tmp_path)
    assert (status, len(files)) == (0, 1)


def test_what_does_no_harm_changes_nothing(prompt, tmp_path, caplog):
    """Inputs of older exports, left-over nodes known and unknown, nulls, titles of any kind: the same picture."""
    _, (plain,) = run(prompt, tmp_path)
    expected = plain.read_bytes()
    plain.unlink()
    prompt["1"]["inputs"]["upload"] = "image"
    prompt["3"]["inputs"] |= {"mask": None, "seed": 0.0, "image": ["1", 0.0]}
    prompt["3"]["_meta"], prompt["4"]["_meta"], prompt["2"]["_meta"] = None, {"title": 5}, ["x"]
    prompt["9"] = {"class_type": "AntiPureDiffusionPurify", "inputs": {"method": "gridpure", "image": ["77", -4]}}
    prompt["10"] = {"class_type": "ImageScale", "inputs": {"width": 512}}
    prompt["11"] = {"class_type": "ImageScale", "inputs": None}
    with caplog.at_level(logging.WARNING):
        status, files = run(prompt, tmp_path)
    assert status == 0
    assert [file.read_bytes() for file in files] == [expected]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "Not run, for no output needs it: AntiPureDiffusionPurify, ImageScale, ImageScale.",
        f"{prompt['1']['_meta']['title']} (node '1') has no input upload; what the workflow says of it is ignored.",
    ]


def test_a_node_that_is_wired_and_needed_by_no_output_is_not_run(prompt, tmp_path, monkeypatch):
    purify = NODES["AntiPureDiffusionPurify"]
    monkeypatch.setattr(purify, "purify", lambda self, **_: pytest.fail("it was run"))
    values = {"method": "gridpure", "timestep": 10, "iterations": 4, "gamma": 0.1, "seed": 0}
    prompt["9"] = {
        "class_type": "AntiPureDiffusionPurify",
        "inputs": {"image": ["3", 0], "denoiser": ["2", 0], **values},
    }
    assert run(prompt, tmp_path)[0] == 0


def test_an_unknown_node_at_the_end_may_be_an_output_and_is_not_dropped(prompt, tmp_path, capsys):
    prompt["9"] = {"class_type": "Image Save", "inputs": {"images": ["3", 0]}}
    assert "Only a ComfyUI can run this workflow, for its nodes Image Save" in refused(prompt, tmp_path, capsys)


def test_without_outputs_everything_runs():
    prompt = read_workflow("protect")
    prompt = {node_id: prompt[node_id] for node_id in ("1", "2", "3")}
    assert needed(prompt) == prompt


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_byte_order_marks(prompt, tmp_path, encoding):
    file = tmp_path / "w.json"
    file.write_text(json.dumps(prompt, ensure_ascii=False), encoding=encoding)
    assert read_workflow(file) == prompt


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"1": {"class_type": "LoadImage", "inputs": {"image": ' + b'{"a":' * 9999 + b"1" + b"}" * 10001, "deeply"),
        (b"\xff\xfe\x00", "could not be read as a workflow"),
        (b"", "could not be read as a workflow"),
        (b"\0\0", "could not be read as a workflow"),
        (b"null", "every node needs a class_type"),
        (b"[1, 2]", "every node needs a class_type"),
        (b"{}", "every node needs a class_type"),
        (b'{"1": null}', "every node needs a class_type"),
        (b'{"1": {"class_type": null}}', "every node needs a class_type"),
        (b'{"1": {"class_type": ["LoadImage"]}}', "every node needs a class_type"),
        (b'{"1": {"class_type": "LoadImage", "inputs": [1]}}', "inputs of node '1' have no names"),
        (b'{"1": {"class_type": "LoadImage"}}', "lacks its input 'image'"),
        (b'{"1": {"class_type": "LoadImage", "inputs": {"image": 9' + b"9" * 5000 + b"}}}", "could not be read"),
    ],
)
def test_files_that_are_no_workflow(tmp_path, capsys, content, sentence):
    (tmp_path / "w.json").write_bytes(content)
    assert main(["run", str(tmp_path / "w.json"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", ".", "\x1b[31mred", "~nobody-there/x.json"])
def test_names_of_workflows_that_are_none(name, capsys):
    assert main(["run", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.strip().isprintable()
    assert len(error) < 500


@pytest.mark.parametrize(
    ("node", "key", "value", "sentence"),
    [
        ("3", "image", None, "lacks its input 'image'"),
        ("3", "image", [None, 0], "takes IMAGE from another node, not [None, 0]"),
        ("3", "image", ["1"], "takes IMAGE from another node"),
        ("3", "image", ["1", -1], "has no output -1"),
        ("3", "image", ["1", 2], "has no output 2"),
        ("3", "image", ["1", 0.5], "takes IMAGE from another node"),
        ("3", "image", ["1", True], "takes IMAGE from another node"),
        ("3", "image", ["99", 0], "wired to node '99', which is not in the workflow"),
        ("3", "image", ["9" * 5000, 0], "which is not in the workflow"),
        ("3", "image", ["3", 0], "cycle"),
        ("3", "image", ["2", 0], "takes IMAGE as 'image', but is wired to DENOISER"),
        ("3", "preset", ["1", 0], "takes COMBO as 'preset', but is wired to IMAGE"),
        ("3", "preset", 5, "choose one of"),
        ("3", "preset", [[]], "choose one of"),
        ("1", "image", "a\0b", "no picture|give a"),
        ("1", "image", "x" * 5000, "no picture"),
        ("1", "image", "x" * 300, "no picture"),
        ("1", "image", "~nobody-there/x.png", "no picture"),
        ("1", "image", "\x1b[31mred.png", "no picture"),
        ("1", "image", {"a": 1}, "give a text"),
        ("2", "denoiser", "x" * 5000, "give the path of a file or folder"),
        ("2", "denoiser", "x" * 300, "is no name of a file"),
        ("2", "denoiser", "a\0b", "give the path of a file or folder"),
        ("2", "denoiser", 5, "give the path of a file or folder"),
        ("4", "filename_prefix", "a\0b", "give a text"),
        ("4", "filename_prefix", "x" * 5000, "give a name of at most 200 bytes"),
        ("4", "filename_prefix", "a/" + "ü" * 101, "give a name of at most 200 bytes"),
    ],
)
def test_values_that_cannot_be_meant(prompt, tmp_path, capsys, node, key, value, sentence):
    prompt[node]["inputs"][key] = value
    error = refused(prompt, tmp_path, capsys)
    assert any(part in error for part in sentence.split("|"))


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "\x1b[2J", "\ud800", "two\nlines"])
@pytest.mark.parametrize("where", ["id", "class", "title", "input"])
def test_names_of_any_kind_stay_out_of_the_terminal(prompt, tmp_path, capsys, text, where):
    if where == "id":
        prompt[text] = prompt.pop("3")
        prompt["4"]["inputs"]["images"] = prompt["5"]["inputs"]["images"] = [text, 7]
    elif where == "class":
        prompt["3"]["class_type"] = text
    elif where == "title":
        prompt["3"] |= {"_meta": {"title": text}, "inputs": {}}
    else:
        prompt["3"]["inputs"] = {text: 1}
    status, files = run(prompt, tmp_path)
    error = capsys.readouterr().err
    assert (status, files) == (2, [])
    assert error.count("\n") == 1
    assert error.strip().isprintable()
    assert len(error) < 700


@pytest.mark.parametrize(
    "setting",
    ["3.steps=" + "[" * 100_000, "3.steps=two", "3." + "x" * 5000 + "=1", "x" * 5000 + ".y=1", "x" * 5000, "3.steps="],
)
def test_settings_that_cannot_be_meant(prompt, tmp_path, capsys, setting):
    refused(prompt, tmp_path, capsys, "--set", setting)


def chain(length: int) -> dict:
    """LoadImage, then Transforms one after another, the last one first in the file."""
    values = {"transforms": "jpeg75", "seed": 0}
    nodes = {
        str(i): {"class_type": "AntiPureTransform", "inputs": {"image": [str(i - 1), 0], **values}}
        for i in range(length, 0, -1)
    }
    return {**nodes, "0": {"class_type": "LoadImage", "inputs": {"image": "astronaut_face.png"}}}


def test_chains_may_be_longer_than_pythons_stack():
    assert execution_order(chain(3000)) == [str(i) for i in range(3001)]
    prompt = chain(3000)
    prompt["0"] = {"class_type": "AntiPureTransform", "inputs": {"image": ["3000", 0]}}
    with pytest.raises(AntiPureError, match="cycle"):
        execution_order(prompt)


def test_a_long_chain_with_every_part_used_twice_runs(monkeypatch, tmp_path):
    class Twice:
        RETURN_TYPES, FUNCTION, OUTPUT_NODE = ("INT",), "add", True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"a": ("INT", {"default": 0}), "b": ("INT", {"default": 0})}}

        def add(self, a, b):
            return ((a + b) % 1000003,)

    monkeypatch.setitem(checks.NODES, "Twice", Twice)
    prompt = {"0": {"class_type": "Twice", "inputs": {"a": 1, "b": 0}}}
    for i in range(1, 3001):
        prompt[str(i)] = {"class_type": "Twice", "inputs": {"a": [str(i - 1), 0], "b": [str(i - 1), 0]}}
    result = Executor(tmp_path).run(dict(reversed(prompt.items())))
    assert result.outputs["3000"] == (pow(2, 3000, 1000003),)


def test_many_nodes_are_checked_in_seconds(photo, tmp_path):
    one = {"class_type": "SaveImage", "inputs": {"images": ["0", 0], "filename_prefix": "a"}}
    prompt = {"0": {"class_type": "LoadImage", "inputs": {"image": str(photo)}}}
    prompt |= {str(i): copy.deepcopy(one) for i in range(1, MANY)}
    prompt["1"]["inputs"]["images"] = ["0", -1]  # the last thing that is found: nothing is run
    prompt = {"0": prompt["0"], **{str(i): prompt[str(i)] for i in range(MANY - 1, 0, -1)}}
    start = time.process_time()
    with pytest.raises(AntiPureError, match="has no output -1"):
        Executor(tmp_path).run(prompt)
    with pytest.raises(AntiPureError, match="No node .* and 19988 more"):
        set_inputs(prompt, ["nothing.x=1"])
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", [name for name in NODES if name.startswith("AntiPure")])
def test_inputs_that_list_files_say_so_and_no_others(name, monkeypatch):
    """Files and nothing else take a path of the user's in place of a listed name."""
    monkeypatch.setattr(model_folders, "list_models", lambda kind: ["a listed file"])
    types = NODES[name].INPUT_TYPES()
    for kind, _ in {**types["required"], **types.get("optional", {})}.values():
        if isinstance(kind, list):
            assert isinstance(kind, inputs.Files) == ("a listed file" in kind)


def test_quality_metrics_take_the_path_of_a_clip(tmp_path):
    node = {"class_type": "AntiPureQualityMetrics", "inputs": {"image": ["1", 0], "clip": str(tmp_path)}}
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "astronaut_face.png"}}, "2": node}
    assert check_node(prompt, "2")["clip"] == str(tmp_path)


def test_a_changed_picture_is_read_again(photo, tmp_path, prompt):
    executor = Executor(tmp_path / "out")
    first = executor.run(prompt).outputs["1"][0]
    Image.new("RGB", (24, 16), (1, 2, 3)).save(photo, compress_level=0)
    second = executor.run(prompt).outputs["1"][0]
    assert not torch.equal(first, second)
