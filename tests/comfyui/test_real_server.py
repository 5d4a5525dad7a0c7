"""The pack inside real ComfyUI servers (see conftest.py): loading, results, cancelling, errors, previews, caching."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from antipure import NODE_CLASS_MAPPINGS
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.server import run_on_server
from antipure.methods.errors import AntiPureError
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "antipure-comfyui"


@pytest.fixture(autouse=True)
def quiet_log(comfyui):
    """No traceback may appear in the server's log, unless the test says that it provokes one."""
    before = len(comfyui.log())
    provoked = []
    yield lambda: provoked.append(True)
    assert provoked or "Traceback" not in comfyui.log()[before:]


def pixels(file: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return np.asarray(image).astype(int)


def original(comfyui) -> np.ndarray:
    return pixels(comfyui.base / "input" / "example.png")


def workflow(name: str = "protect", *settings: str) -> dict:
    """A shipped workflow with few steps."""
    few = {
        "protect": ["3.steps=3"],
        "protect_and_purify": ["3.steps=3", "5.iterations=1", "6.iterations=1"],
    }
    return set_inputs(read_workflow(name), [*few.get(name, []), *settings])


class Run:
    """A prompt posted the way the browser does, with its websocket messages."""

    def __init__(self, comfyui, prompt: dict):
        websocket = pytest.importorskip("websocket")
        self.comfyui, self.id = comfyui, str(uuid.uuid4())
        self.socket = websocket.create_connection(f"ws{comfyui.url[4:]}/ws?clientId={self.id}", timeout=120)
        self.binary: list[bytes] = []
        comfyui.post("/prompt", {"prompt": prompt, "prompt_id": self.id, "client_id": self.id})

    def messages(self):
        """(kind, data) of each message of this run, until it ends; binary ones are collected."""
        while True:
            message = self.socket.recv()
            if isinstance(message, bytes):
                self.binary.append(message)
                continue
            message = json.loads(message)
            kind, data = message["type"], message["data"]
            if data.get("prompt_id") == self.id:
                yield kind, data
                if kind == "executing" and data["node"] is None:
                    self.socket.close()
                    return

    def progress(self):
        return (data["value"] for kind, data in self.messages() if kind == "progress")

    def texts(self) -> list[str]:
        """What nodes were given to show, in order."""
        found = [message[4:] for message in self.binary if message[:4] == b"\0\0\0\3"]
        return [text[4 + int.from_bytes(text[:4], "big") :].decode() for text in found]

    def status(self) -> tuple[str, dict]:
        """status_str, and the run's events in the history."""
        status = self.comfyui.json(f"/history/{self.id}")[self.id]["status"]
        return status["status_str"], dict(status["messages"])


# Loading -----------------------------------------------------------------------------------------------------


def test_every_node_is_listed_with_its_texts(comfyui):
    listed = comfyui.json("/object_info")
    for node_id in NODE_CLASS_MAPPINGS:
        info = listed[node_id]
        assert info["category"].startswith("AntiPure")
        assert info["description"]
        assert info["display_name"] != node_id
        assert len(info["output_tooltips"]) == len(info["output"])
        assert all(info["output_tooltips"])
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert inputs
        for name, (_, options) in inputs.items():
            assert options.get("tooltip"), f"{node_id}.{name}"


def test_the_pack_loads_without_complaints(comfyui):
    log = comfyui.log()
    assert "IMPORT FAILED" not in log
    assert "Traceback" not in log
    assert FOLDER in log


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_every_node_has_a_help_page(comfyui, node_id):
    assert comfyui.get(f"/extensions/{FOLDER}/docs/{node_id}.md").strip()


# What the shipped workflow for folders needs and a version has not; its note names what to take there.
LACKING = {"0.3.64": {"LoadImageDataSetFromFolder"}}


def test_workflows_are_offered_as_templates(comfyui):
    names = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert names
    assert sorted(comfyui.json("/api/workflow_templates")[FOLDER]) == names
    for name in names:
        graph = comfyui.json(f"/api/workflow_templates/{FOLDER}/{quote(name)}.json")
        assert comfyui.get(f"/api/workflow_templates/{FOLDER}/{quote(name)}.jpg")[:2] == b"\xff\xd8"
        known = comfyui.json("/object_info")
        used = {node["type"] for node in graph["nodes"]} - {"Note", "MarkdownNote"}
        assert used - LACKING.get(comfyui.version, set()) <= known.keys()


def test_a_mistake_in_a_list_of_purifiers_is_refused_before_the_graph_runs(comfyui, tmp_path):
    prompt = set_inputs(read_workflow("robustness_report"), ["6.purifiers=gridpure1, gridpur5"])
    before = comfyui.json("/history")
    with pytest.raises(AntiPureError, match="'gridpur5' is no purifier or transform") as caught:
        run_on_server(comfyui.url, prompt, tmp_path)
    assert "\n" not in str(caught.value)
    assert comfyui.json("/history") == before


def test_models_are_listed_and_a_broken_one_is_named(comfyui, tmp_path, quiet_log):
    quiet_log()
    models = comfyui.base / "models" / "antipure"
    (models / "faces" / "unet").mkdir(parents=True)
    for name in ("faces/unet/weights.safetensors", "faces2.pt", "more/adm.pt", "notes.txt"):
        (models / name).parent.mkdir(exist_ok=True)
        (models / name).write_bytes(b"no checkpoint")
    try:
        choices = comfyui.json("/object_info/AntiPureLoadDenoiser")["AntiPureLoadDenoiser"]["input"]["required"]
        assert choices["denoiser"][0] == [
            "bundled", "bundled_pair", "bundled_held_out", "bundled_judge", "faces", "faces2.pt", "more/adm.pt",
        ]  # fmt: skip
        with pytest.raises(AntiPureError, match=r"Load Pixel Denoiser \(node 2\) failed on the server: .*faces2.pt"):
            run_on_server(comfyui.url, workflow("protect", "2.denoiser=faces2.pt"), tmp_path)
    finally:
        shutil.rmtree(models)


# Results -----------------------------------------------------------------------------------------------------


def test_shipped_workflow(comfyui, tmp_path):
    picture = tmp_path / "my picture.png"
    picture.write_bytes((comfyui.base / "input" / "example.png").read_bytes())
    prompt = workflow("protect_and_purify", f"1.image={picture}")
    result = run_on_server(comfyui.url, prompt, tmp_path / "out")
    change = pixels(result.files["4"][0]) - original(comfyui)
    assert 0 < np.abs(change).max() <= 8
    assert result.files["4"][0].parent == tmp_path / "out" / "antipure"
    assert pixels(result.files["10"][0]).size > change.size  # the sheet
    assert result.ui["7"]["metrics"][0]["levels"] == np.abs(change).max()
    assert "structural distortion" in result.ui["8"]["text"][0]
    assert [path.parent.name for path in (comfyui.base / "input").rglob("*") if path.is_file()].count("antipure") == 1


def test_result_equals_the_one_without_a_server(comfyui, tmp_path):
    prompt = workflow("protect", "3.steps=8", "3.seed=5")
    file = run_on_server(comfyui.url, prompt, tmp_path).files["4"][0]
    image = torch.from_numpy(original(comfyui).astype(np.float32) / 255)[None]
    values = {key: value for key, value in prompt["3"]["inputs"].items() if not isinstance(value, list)}
    with torch.inference_mode():
        (denoiser,) = NODE_CLASS_MAPPINGS["AntiPureLoadDenoiser"]().load(prompt["2"]["inputs"]["denoiser"], "fp32")
        protected = NODE_CLASS_MAPPINGS["AntiPureProtect"]().protect(image=image, denoiser=denoiser, **values)[0]
    here, there = (protected[0].numpy() * 255).round().astype(int), pixels(file)
    assert np.abs(there - original(comfyui)).max() <= 8
    mean_square = ((here - there) ** 2).mean()
    print(f"{comfyui.version}: {(here != there).mean():.2%} of the values differ from the run without a server")
    # Another torch version may round a gradient to another sign here and there; with the same sums it is equal.
    assert mean_square < 255**2 * 1e-4  # PSNR above 40 dB


def test_transparency_as_mask(comfyui, tmp_path, monkeypatch):
    """LoadImage's MASK is 1 where the picture is transparent: only there it may change."""
    monkeypatch.setitem(sys.modules, "websocket", None)  # one run that polls
    rgba = np.dstack([original(comfyui), np.full((64, 64), 255)]).astype(np.uint8)
    rgba[16:48, 8:40, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "hole.png")
    prompt = workflow("protect", f"1.image={tmp_path / 'hole.png'}")
    prompt["3"]["inputs"]["mask"] = ["1", 1]
    change = np.abs(pixels(run_on_server(comfyui.url, prompt, tmp_path).files["4"][0]) - original(comfyui)).max(-1)
    inside = rgba[..., 3] == 0
    assert change[~inside].max() == 0
    assert 0 < change[inside].max() <= 8


# Guest manners -----------------------------------------------------------------------------------------------


def test_progress_and_previews_arrive(comfyui):
    run = Run(comfyui, workflow("protect", "3.seed=11"))
    done = list(run.progress())
    assert done[0] == 0, "the picture before the first step"
    assert done[-1] == 3
    assert done == sorted(set(done))  # 0.33 leaves out what follows within a tenth of a second
    assert run.status()[0] == "success"
    previews = [message for message in run.binary if message[:8] == b"\0\0\0\1\0\0\0\1"]  # a preview, as JPEG
    assert previews
    for message in previews:
        assert pixels(message[8:]).shape == (512, 512, 3)  # ComfyUI enlarges what is smaller
    starting, *progress, report = run.texts()
    assert starting == "starting"
    assert "robust, 8 levels, 3 steps, seed 11" in report
    assert all(re.fullmatch(r"step \d of 3\n(loss .+\n)?.+ left", text) for text in progress)


def test_texts_reach_the_client_that_asked_and_no_other(comfyui):
    """An idle page may have a node of the same number, which never ran."""
    websocket = pytest.importorskip("websocket")
    idle = websocket.create_connection(f"ws{comfyui.url[4:]}/ws?clientId=idle", timeout=5)
    heard = []
    try:
        run = Run(comfyui, workflow("protect", "3.seed=21"))
        list(run.messages())
        assert run.texts()[-1].startswith("robust, 8 levels")
        prompt = workflow("protect", "3.seed=22")
        nobodys = str(uuid.uuid4())
        comfyui.post("/prompt", {"prompt": prompt, "prompt_id": nobodys})  # a run without a client
        while nobodys not in comfyui.json("/history"):
            time.sleep(0.1)
        with suppress(websocket.WebSocketTimeoutException):
            while True:
                heard.append(idle.recv())
    finally:
        idle.close()
    texts = [message for message in heard if isinstance(message, bytes) and message[:4] == b"\0\0\0\3"]
    assert heard, "the queue's length goes to everybody"
    assert texts == []


def test_the_last_text_of_a_purifier_is_its_result(comfyui):
    run = Run(comfyui, workflow("purify", "3.iterations=1", "3.timestep=2", "3.seed=23"))
    list(run.messages())
    assert run.texts()[-1].startswith("gridpure\ntimestep 2\niterations 1\nchanged by ")


def test_a_long_step_shows_itself_at_once_and_is_left_at_once(comfyui):
    """512 px in steps of ten seconds and more: a user waits neither for a sign nor for the end."""
    with Image.open(ROOT / "bundled" / "astronaut.png") as whole:
        whole.convert("RGB").resize((512, 512)).save(comfyui.base / "input" / "long.png")
    run = Run(comfyui, workflow("protect", "1.image=long.png", "3.seed=24", "3.steps=100"))
    began, first, shown = None, None, None
    while shown is None or time.monotonic() < began + 4:
        message = run.socket.recv()
        if isinstance(message, bytes):
            run.binary.append(message)
            if message[:4] == b"\0\0\0\1":
                shown = shown or time.monotonic()
            continue
        message = json.loads(message)
        if message["type"] == "executing" and message["data"]["node"] == "3":
            began = time.monotonic()
        if message["type"] == "progress" and message["data"]["node"] == "3":
            first = first or time.monotonic()
    comfyui.post("/interrupt", {"prompt_id": run.id})
    acknowledged = time.time()
    list(run.messages())
    _, events = run.status()
    seconds = events["execution_interrupted"]["timestamp"] / 1000 - acknowledged
    print(f"{comfyui.version}: progress after {first - began:.2f} s, preview after {shown - began:.2f} s, "
          f"cancelled in {seconds:.2f} s; {run.texts()}")  # fmt: skip
    assert first - began < 2
    assert shown - began < 2
    assert seconds < 1
    starting, *times, last = run.texts()
    assert starting == "starting"
    assert all(text.startswith("step 0 of 100\n") and text.endswith(" left") for text in times)
    assert last == "cancelled\nstep 0 of 100"


def test_an_unchanged_workflow_is_not_run_again(comfyui, tmp_path):
    prompt = workflow("protect", "3.seed=12")
    first = run_on_server(comfyui.url, prompt, tmp_path / "first").files["4"]
    run = Run(comfyui, prompt)
    assert not list(run.progress())
    assert set(run.status()[1]["execution_cached"]["nodes"]) >= {"1", "2", "3"}
    second = run_on_server(comfyui.url, prompt, tmp_path / "second").files["4"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_memory_can_be_freed_between_runs(comfyui, tmp_path):
    prompt = workflow("protect", "3.seed=13")
    first = run_on_server(comfyui.url, prompt, tmp_path / "first").files["4"][0]
    assert "Requested to load" in comfyui.log()  # the denoiser is known to the memory management
    for payload in ({"unload_models": True}, {"unload_models": True, "free_memory": True}):
        comfyui.post("/free", payload)
        time.sleep(0.5)
        prompt = set_inputs(prompt, ["3.levels=6"] if "free_memory" not in payload else ["3.levels=8"])
        file = run_on_server(comfyui.url, prompt, tmp_path / "again").files["4"][0]
    assert (pixels(file) == pixels(first)).all()


def test_cancelling_stops_within_a_step(comfyui, tmp_path):
    run = Run(comfyui, workflow("protect", "3.steps=10000", "3.seed=14"))
    values = run.progress()
    started = next(values)
    begun = time.monotonic()
    while (value := next(values)) < started + 4:
        pass
    step = (time.monotonic() - begun) / (value - started)
    comfyui.post("/interrupt", {"prompt_id": run.id})
    acknowledged = time.time()
    last = max([value, *values])
    status, events = run.status()
    # By the server's clock: it may collect garbage for seconds before its last messages leave.
    seconds = events["execution_interrupted"]["timestamp"] / 1000 - acknowledged
    print(f"{comfyui.version}: stopped in {seconds:.3f} s, {last - value} steps later, a step takes {step:.3f} s")
    assert status == "error"
    assert events["execution_interrupted"]["node_id"] == "3"
    assert last - value <= 2
    assert seconds < 2 * step + 2
    again = run_on_server(comfyui.url, workflow("protect", "3.seed=14"), tmp_path).files["4"][0]
    assert 0 < np.abs(pixels(again) - original(comfyui)).max() <= 8


def test_ctrl_c_stops_the_run_on_the_server(comfyui, tmp_path):
    command = [sys.executable, "-m", "antipure.cli.main", "run", "protect", "--server", comfyui.url]
    command += ["--set", "3.steps=10000", "--set", "3.seed=15", "--out", str(tmp_path)]
    # A background shell's children start with Ctrl-C ignored; a terminal's do not.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    client = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        while not comfyui.json("/queue")["queue_running"]:
            assert client.poll() is None
            time.sleep(0.1)
        prompt_id = comfyui.json("/queue")["queue_running"][0][1]
        time.sleep(1)
        client.send_signal(signal.SIGINT)
        _, printed = client.communicate(timeout=30)
    finally:
        client.kill()
    assert client.returncode == 130
    assert printed.strip().splitlines()[-1] == "antipure: cancelled"
    deadline = time.monotonic() + 20
    while comfyui.json("/queue")["queue_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status = comfyui.json(f"/history/{prompt_id}")[prompt_id]["status"]
    assert "execution_interrupted" in dict(status["messages"])


# Errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("3.levels=-1", "Protect (node 3): Value -1.0 smaller than min of 0.25 (levels)"),
        ("3.steps=0", "steps"),
        (
            "2.denoiser=../../etc/passwd",
            "'../../etc/passwd' not in ['bundled', 'bundled_pair', 'bundled_held_out', 'bundled_judge']",
        ),
        ("2.precision=fp8", "'fp8' not in"),
        ("1.image=../secret.png", "Invalid image file: ../secret.png"),
    ],
)
def test_bad_values_are_refused(comfyui, tmp_path, setting, expected):
    with pytest.raises(AntiPureError) as caught:
        run_on_server(comfyui.url, workflow("protect", setting), tmp_path)
    assert expected in str(caught.value)
    assert comfyui.json("/queue") == {"queue_running": [], "queue_pending": []}


def test_unknown_nodes_are_refused(comfyui, tmp_path):
    prompt = workflow("protect")
    prompt["9"] = {"class_type": "AntiPureNoSuchNode", "inputs": {}}
    with pytest.raises(AntiPureError, match="has no node AntiPureNoSuchNode"):
        run_on_server(comfyui.url, prompt, tmp_path)
    with pytest.raises(urllib.error.HTTPError) as caught:
        comfyui.post("/prompt", {"prompt": prompt})
    kind = json.loads(caught.value.read())["error"]["type"]
    assert kind in ("invalid_prompt", "missing_node_type")  # up to 0.8, later


def test_a_failing_node_is_named_and_the_next_run_works(comfyui, tmp_path, quiet_log):
    quiet_log()
    prompt = workflow("protect")
    prompt["6"] = {"class_type": "AntiPureObjective", "inputs": {}}
    objective = {"ddpm": 1.0, "pfg": 0.0, "etg": 1.0, "unrolled": 0.0, "patch_size": 4, "t_p": 100}
    prompt["6"]["inputs"] = {**objective, "t_err": 100, "unrolled_steps": 1, "unrolled_t": 10}
    prompt["3"]["inputs"]["objective"] = ["6", 0]
    with pytest.raises(AntiPureError) as caught:
        run_on_server(comfyui.url, prompt, tmp_path)
    assert str(caught.value).startswith("Protect (node 3) failed on the server: t_err")
    prompt["6"]["inputs"]["t_err"] = 900
    assert run_on_server(comfyui.url, prompt, tmp_path).files["4"]
