"""Running workflows on a server: against a small fake ComfyUI with scripted answers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from antipure.cli import connection
from antipure.cli import server as client
from antipure.cli.downloads import is_what_it_claims, local_name
from antipure.cli.server import run_on_server
from antipure.methods.errors import AntiPureError
from PIL import Image

PROMPT = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "3": {"class_type": "AntiPureProtect", "_meta": {"title": "Protect"}, "inputs": {"image": ["1", 0], "levels": 8.0}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "antipure/protected"}},
}


def picture_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(buffer, kind)
    return buffer.getvalue()


def png_bytes() -> bytes:
    return picture_bytes("PNG")


def slowly(*parts: bytes) -> Iterator[bytes]:
    """The parts at once, then the last one again and again for five seconds."""
    yield from parts
    for _ in range(100):
        threading.Event().wait(0.05)
        yield parts[-1]


def event(kind: str, **data) -> dict:
    return {"type": kind, "data": data}


def saved(filename="protected_00001_.png", subfolder="antipure", kind="output") -> dict:
    return {"filename": filename, "subfolder": subfolder, "type": kind}


def ended(*messages, outputs=None, status="success") -> dict:
    return {"status": {"status_str": status, "messages": list(messages)}, "outputs": outputs or {}}


class FakeComfy(ThreadingHTTPServer):
    """Answers like ComfyUI; tests change its attributes. `calls` notes each POST but uploads as (path, JSON)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.object_info = {"LoadImage": {}, "AntiPureProtect": {}, "SaveImage": {}}
        self.answers: dict[str, tuple[int, bytes]] = {}  # path: what to answer instead
        self.raw: dict[str, Iterator[bytes]] = {}  # path: what to send instead of any answer
        self.rejection: dict | None = None
        self.entry = ended(outputs={"4": {"images": [saved()]}})
        self.empty_polls = 0  # how often the history is empty before it holds the entry
        self.state = "running"
        self.frames: list = []  # dicts and bytes the websocket sends after a prompt; "close" drops it
        self.prompt: dict = {}
        self.uploads: dict[str, bytes] = {}
        self.calls: list[tuple[str, dict]] = []
        self.views: list[dict] = []
        self.posted = threading.Event()
        self.sockets = 0

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    server: FakeComfy
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body: object, status: int = 200) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        fake, url = self.server, urlsplit(self.path)
        if url.path in fake.raw:
            for part in fake.raw[url.path]:
                self.wfile.write(part)
            self.close_connection = True
        elif url.path in fake.answers:
            status, body = fake.answers[url.path]
            self.answer(body, status)
        elif url.path == "/ws":
            self.websocket()
        elif url.path == "/object_info":
            self.answer(fake.object_info)
        elif url.path == "/queue":
            own = [[[0, fake.prompt.get("prompt_id"), {}]], [[1, "another", {}]]]
            running, pending = own if fake.state == "running" else own[::-1]
            self.answer({"queue_running": running, "queue_pending": pending if fake.state != "gone" else []})
        elif url.path.startswith("/history/"):
            fake.empty_polls -= 1
            self.answer({url.path.split("/")[2]: fake.entry} if fake.empty_polls < 0 else {})
        elif url.path == "/view":
            fake.views.append({key: values[0] for key, values in parse_qs(url.query).items()})
            self.answer(png_bytes())
        else:
            self.answer(b"404", 404)

    def do_POST(self):
        fake, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        if self.path in fake.answers:
            status, text = fake.answers[self.path]
            self.answer(text, status)
        elif self.path == "/upload/image":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = {
                p.get_param("name", header="content-disposition"): p
                for p in BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()
            }
            folder, picture = parts["subfolder"].get_content().strip(), parts["image"]
            assert parts["overwrite"].get_content().strip() == "true"
            fake.uploads[f"{folder}/{picture.get_filename()}"] = picture.get_payload(decode=True)
            self.answer({"name": picture.get_filename(), "subfolder": folder, "type": "input"})
        else:
            fake.calls.append((self.path, json.loads(body)))
            if self.path != "/prompt":
                self.answer(b"")
                return
            fake.prompt = json.loads(body)
            if fake.rejection:
                self.answer(fake.rejection, 400 if "error" in fake.rejection else 200)
            else:
                self.answer({"prompt_id": fake.prompt["prompt_id"], "number": 1, "node_errors": {}})
            fake.posted.set()

    def websocket(self):
        fake = self.server
        fake.sockets += 1
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.frame({"type": "status", "data": {"status": {}}})
        fake.posted.wait(10)
        for message in fake.frames:
            if message == "close":
                break
            if isinstance(message, Iterator):
                for part in message:
                    self.wfile.write(part)
                break
            if isinstance(message, dict) and "prompt_id" not in message["data"]:
                message["data"]["prompt_id"] = fake.prompt["prompt_id"]
            self.frame(message)
        else:
            self.rfile.read(1)  # until the client leaves
        self.close_connection = True

    def frame(self, message: object) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        head = bytes([0x82 if isinstance(message, bytes) else 0x81])
        size = bytes([len(data)]) if len(data) < 126 else struct.pack(">BH", 126, len(data))
        self.wfile.write(head + size + data)
        self.wfile.flush()


@pytest.fixture
def comfy():
    fake = FakeComfy()
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield fake
    fake.posted.set()
    fake.shutdown()
    fake.server_close()


@pytest.fixture
def polling(monkeypatch):
    """As if websocket-client were not installed."""
    monkeypatch.setitem(sys.modules, "websocket", None)


def fails(comfy: FakeComfy | str, tmp_path: Path, prompt: dict = PROMPT) -> str:
    """The sentence the run fails with."""
    with pytest.raises(AntiPureError) as caught:
        run_on_server(comfy if isinstance(comfy, str) else comfy.url, prompt, tmp_path / "out")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Runs --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("polling")
def test_polling_run_downloads_what_was_saved(comfy, tmp_path):
    comfy.empty_polls = 3
    comfy.entry = ended(
        outputs={
            "4": {"images": [saved(), saved("protected_00002_.png")], "animated": [False]},
            "5": {"images": [saved("preview.png", "", "temp")]},
            "7": {"text": ["report"], "metrics": [{"psnr": 31.5}]},
        }
    )
    result = run_on_server(comfy.url, PROMPT, tmp_path)
    assert result.files == {"4": [tmp_path / "antipure" / f"protected_0000{i}_.png" for i in (1, 2)]}
    assert all(file.read_bytes() == png_bytes() for file in result.files["4"])
    assert result.ui == {"4": {"animated": [False]}, "7": {"text": ["report"], "metrics": [{"psnr": 31.5}]}}
    assert [view["type"] for view in comfy.views] == ["output", "output"]
    assert comfy.prompt["prompt"] == PROMPT
    assert comfy.sockets == 0


def test_websocket_run_ignores_previews_and_other_runs(comfy, tmp_path):
    comfy.frames = [
        event("execution_start"),
        event("execution_error", prompt_id="another"),
        event("executing", node="3"),
        b"\x00\x00\x00\x01\x00\x00\x00\x01jpeg",
        event("progress", node="3", value=1, max=2),
        event("progress_state", nodes={"3": {"value": 2.0, "max": 2.0, "state": "running"}, "x": None}),
        event("progress_state", nodes=["what"]),
        event("executing", node=None),
    ]
    result = run_on_server(comfy.url, PROMPT, tmp_path)
    assert comfy.sockets == 1
    assert [path.name for path in result.files["4"]] == ["protected_00001_.png"]


def test_progress_bar_shows_the_node(comfy, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    comfy.frames = [
        event("progress", node="3", value=1, max=40),
        event("progress", node=["?"], value=1, max=2),
        event("progress", node="3", value="?", max={}),
        event("execution_success"),
    ]
    run_on_server(comfy.url, PROMPT, tmp_path)
    assert "Protect (node 3)" in terminal.getvalue()
    assert "1/40" in terminal.getvalue()


def test_nothing_is_printed_without_a_terminal(comfy, tmp_path, capsys):
    comfy.frames = [event("progress", node="3", value=1, max=40), event("execution_success")]
    run_on_server(comfy.url, PROMPT, tmp_path)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("frames", [["close"], [event("executing", node="3"), "close"], [b"\x00"] * 3 + ["close"]])
def test_a_dropped_socket_falls_back_to_polling(comfy, tmp_path, frames):
    comfy.frames, comfy.empty_polls = frames, 2
    assert run_on_server(comfy.url, PROMPT, tmp_path).files


def test_a_refused_socket_falls_back_to_polling(comfy, tmp_path):
    comfy.answers["/ws"] = (403, b"")
    assert run_on_server(comfy.url, PROMPT, tmp_path).files


@pytest.mark.usefixtures("polling")
def test_a_server_that_is_away_for_a_moment_is_waited_for(comfy, tmp_path, monkeypatch):
    history, answers = client.Server.history, iter([True, True, False])

    def flaky(self, prompt_id):
        if next(answers, False):
            raise client.Unreachable("away")
        return history(self, prompt_id)

    monkeypatch.setattr(client.Server, "history", flaky)
    assert run_on_server(comfy.url, PROMPT, tmp_path).files
    monkeypatch.setattr(connection, "PATIENCE", 0)
    answers = iter([True] * 9)
    assert "away" in fails(comfy, tmp_path)


# Uploads -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("polling")
def test_local_pictures_are_uploaded_by_content(comfy, tmp_path):
    for name in ("a.PNG", "same bytes.png"):
        (tmp_path / name).write_bytes(png_bytes())
    prompt = {
        **PROMPT,
        "1": {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "a.PNG")}},
        "2": {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "same bytes.png")}},
        "5": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "6": {"class_type": "LoadImage", "inputs": {"image": ["3", 0]}},
    }
    before = json.dumps(prompt)
    run_on_server(comfy.url, prompt, tmp_path / "out")
    assert json.dumps(prompt) == before
    name = f"antipure/{hashlib.sha256(png_bytes()).hexdigest()[:24]}.png"
    assert comfy.uploads == {name: png_bytes()}
    sent = comfy.prompt["prompt"]
    assert [sent[i]["inputs"]["image"] for i in "1256"] == [name, name, "example.png", ["3", 0]]


@pytest.mark.usefixtures("polling")
def test_what_the_server_leaves_out_of_a_picture_is_told(comfy, tmp_path):
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png", icc_profile=b"x")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    prompt = {
        **PROMPT,
        "1": {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "a.png")}},
        "2": {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "b.png")}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "b"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "c"}},
    }
    result = run_on_server(comfy.url, prompt, tmp_path / "out")
    assert result.notes == ["a.png has alpha, which ComfyUI's Save Image does not save."]


def test_only_pictures_are_uploaded(comfy, tmp_path):
    secret = tmp_path / "id_ed25519"
    secret.write_text("PRIVATE KEY")
    prompt = {**PROMPT, "1": {"class_type": "LoadImage", "inputs": {"image": str(secret)}}}
    assert "not a picture" in fails(comfy, tmp_path, prompt)
    assert not comfy.uploads


@pytest.mark.parametrize("answer", [(413, b"too large"), (200, b"[]"), (200, b"{}"), (400, b"")])
def test_a_refused_upload_is_reported(comfy, tmp_path, answer):
    (tmp_path / "a.png").write_bytes(png_bytes())
    comfy.answers["/upload/image"] = answer
    prompt = {**PROMPT, "1": {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "a.png")}}}
    message = fails(comfy, tmp_path, prompt)
    assert "a.png" in message
    assert str(answer[0]) in message


# Errors ------------------------------------------------------------------------------------------------------


def test_missing_nodes_are_named(comfy, tmp_path):
    comfy.object_info = {"LoadImage": {}}
    message = fails(comfy, tmp_path)
    assert "AntiPureProtect, SaveImage" in message
    assert "install the pack there" in message
    assert not comfy.calls


@pytest.mark.parametrize(
    "url", ["", "ftp://127.0.0.1", "file:///etc/passwd", "http://", "http://a:b", "http://[1", "a b"]
)
def test_no_address(url, tmp_path):
    message = fails(url, tmp_path)
    assert "http://127.0.0.1:8188" in message or "check the address" in message


def test_nobody_answers(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = fails(f"127.0.0.1:{port}", tmp_path)
    assert f"http://127.0.0.1:{port}" in message
    assert "refused" in message


@pytest.mark.parametrize(
    "answer", [(200, b"<html>"), (200, b"[]"), (404, b"not here"), (500, b"{}"), (502, b""), (200, b"\xff")]
)
def test_not_a_comfyui(comfy, tmp_path, answer):
    comfy.answers["/object_info"] = answer
    message = fails(comfy, tmp_path)
    assert comfy.url in message
    assert "check the address" in message


def test_a_server_that_hangs_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            for reply in (b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(9999)
                    connection.sendall(reply)

        threading.Thread(target=hang_up, daemon=True).start()
        for _ in range(3):
            assert "No ComfyUI answers" in fails(f"127.0.0.1:{listener.getsockname()[1]}", tmp_path)


@pytest.mark.parametrize("accepted", [False, True])
def test_rejected_inputs_are_explained_and_nothing_stays_queued(comfy, tmp_path, accepted):
    error = {"type": "value_smaller_than_min", "message": "Value -1.0 smaller than min of 0.25", "details": "levels"}
    comfy.rejection = {"node_errors": {"3": {"errors": [error], "class_type": "AntiPureProtect"}}}
    comfy.rejection |= {} if accepted else {"error": {"message": "Prompt outputs failed validation"}}
    message = fails(comfy, tmp_path)
    assert message.endswith("refused the workflow: Protect (node 3): Value -1.0 smaller than min of 0.25 (levels).")
    assert ("/queue", {"delete": [comfy.prompt["prompt_id"]]}) in comfy.calls


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "invalid_prompt", "message": "Cannot execute", "details": "Node ID '#3'"}, "Cannot execute (Node"),
        ({"message": "Prompt has no outputs", "details": ""}, "Prompt has no outputs."),
        ("plain\n\x1b[31mtext", r"plain \u001b[31mtext."),
    ],
)
def test_a_rejected_workflow_is_explained(comfy, tmp_path, error, expected):
    comfy.rejection = {"error": error, "node_errors": []}
    assert expected in fails(comfy, tmp_path)


def test_an_old_server_is_named(comfy, tmp_path):
    comfy.rejection = {"prompt_id": "its own", "node_errors": {}}
    assert "0.3.64 or newer" in fails(comfy, tmp_path)


@pytest.mark.parametrize("over_socket", [False, True])
def test_a_failing_node_is_named(comfy, tmp_path, monkeypatch, over_socket):
    if not over_socket:
        monkeypatch.setitem(sys.modules, "websocket", None)
    failure = {"node_id": "3", "exception_type": "AntiPureError", "exception_message": "The image has NaN.\n\nTIPS: x"}
    comfy.entry = ended(["execution_error", failure], status="error")
    comfy.frames = [event("execution_error", **failure)]
    assert fails(comfy, tmp_path) == "Protect (node 3) failed on the server: The image has NaN."


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (ended(["execution_interrupted", {"node_id": "3"}], status="error"), "was cancelled on the server"),
        (
            ended(["execution_error", {"node_id": ["?"], "exception_type": "KeyError"}]),
            "failed on the server: KeyError",
        ),
        (ended(status="error"), "failed on the server"),
        (ended(["what"], 3, status="error"), "failed on the server"),
    ],
)
@pytest.mark.usefixtures("polling")
def test_runs_that_did_not_end_well(comfy, tmp_path, entry, expected):
    comfy.entry = entry
    assert expected in fails(comfy, tmp_path)


@pytest.mark.usefixtures("polling")
def test_a_lost_run_is_not_waited_for(comfy, tmp_path):
    comfy.empty_polls, comfy.state = 10**6, "gone"
    assert "no longer knows the run" in fails(comfy, tmp_path)


@pytest.mark.usefixtures("polling")
def test_a_vanished_picture_is_reported(comfy, tmp_path):
    comfy.answers["/view"] = (404, b"")
    assert "no longer has protected_00001_.png" in fails(comfy, tmp_path)


# Answers without end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/object_info", "/view"])
@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"{"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"),
        (b"HTTP/1.1 500 Oh\r\n\r\n", b"{"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP", b"/"),
        (b"HTTP/1.1 100 Continue\r\n\r\n",),
    ],
)
@pytest.mark.usefixtures("polling")
def test_an_answer_that_trickles_is_given_up(comfy, tmp_path, monkeypatch, path, parts):
    monkeypatch.setattr(connection, "PATIENCE", 0.4)
    comfy.raw[path] = slowly(*parts)
    started = time.monotonic()
    assert "no whole answer in time" in fails(comfy, tmp_path)
    assert time.monotonic() - started < 5
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("polling")
def test_a_slow_answer_has_its_time(comfy, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 0.4)
    monkeypatch.setattr(connection, "SLOWEST", 20)
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

    def in_parts():
        for i in range(0, len(png_bytes()), 4):
            yield (b"" if i else head) + png_bytes()[i : i + 4]
            time.sleep(0.05)

    comfy.raw["/view"] = in_parts()
    assert run_on_server(comfy.url, PROMPT, tmp_path).files["4"][0].read_bytes() == png_bytes()


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1600000000\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 1000] * 9],
        [b"HTTP/1.1 500 Oh\r\n\r\n", *[b"x" * 1000] * 9],
    ],
)
@pytest.mark.usefixtures("polling")
def test_answers_are_bounded(comfy, tmp_path, monkeypatch, parts):
    monkeypatch.setattr(connection, "LONGEST_ANSWER", 5000)
    monkeypatch.setattr(connection, "LONGEST_PICTURE", 5000)
    for path in ("/view", "/object_info"):
        comfy.raw = {path: iter(parts)}
        message = fails(comfy, tmp_path)
        assert f"answers {path} with more than" in message
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "chatter",
    [
        [b"\x89\x00"],  # pings
        [b"\x82\x7f" + (10**6).to_bytes(8, "big"), b"x"],  # a frame that trickles
        [b"\x02\x01x", b"\x00\x01x"],  # a message of ever more frames
        [b"\x81\x2e" + json.dumps(event("executing", prompt_id="a")).encode()[:46]],
        [],
    ],
)
def test_a_run_the_server_forgot_is_not_followed_for_ever(comfy, tmp_path, monkeypatch, chatter):
    monkeypatch.setattr(client, "CHECK_SECONDS", 0.3)
    comfy.empty_polls, comfy.state = 10**6, "gone"
    comfy.frames = [slowly(*chatter)] if chatter else []
    started = time.monotonic()
    assert "no longer knows the run" in fails(comfy, tmp_path)
    assert time.monotonic() - started < 5


def test_progress_goes_on_after_the_server_was_asked(comfy, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "CHECK_SECONDS", 0.2)
    comfy.empty_polls = 3
    comfy.frames = [slowly(b"\x89\x00")]
    started = time.monotonic()
    assert run_on_server(comfy.url, PROMPT, tmp_path).files
    assert time.monotonic() - started > 0.75, "while it is in the queue it is followed, not polled"
    assert comfy.sockets == 1


def test_a_message_without_end_is_not_collected(comfy, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "LONGEST_ANSWER", 50_000)
    sent = []

    def flood():
        yield b"\x82\x7f" + (10**12).to_bytes(8, "big")
        while True:
            sent.append(1)
            yield b"x" * 10_000

    comfy.frames = [flood()]
    assert run_on_server(comfy.url, PROMPT, tmp_path).files, "it is polled instead"
    assert len(sent) < 2000


def test_a_handshake_that_trickles_is_given_up(comfy, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "TIMEOUT", 0.4)
    comfy.raw["/ws"] = slowly(b"HTTP/1.1 101 Switching", b"x")
    assert run_on_server(comfy.url, PROMPT, tmp_path).files


@pytest.mark.parametrize("path", ["/object_info", "/prompt", "/queue"])
@pytest.mark.usefixtures("polling")
def test_lists_in_lists_without_end(comfy, tmp_path, path):
    comfy.answers[path], comfy.empty_polls = (200, b"[" * 10**6), 1
    assert f"does not answer {path} as ComfyUI does" in fails(comfy, tmp_path)


# What is downloaded --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("polling")
def test_a_download_takes_no_other_files_place(comfy, tmp_path):
    mine = tmp_path / "antipure" / "protected_00001_.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    names = ["protected_00001_.png", "protected_00002_.png", "PROTECTED_00002_.png", "a.png", "a.png", "A.PNG"]
    comfy.entry = ended(outputs={"4": {"images": [saved(name) for name in names]}})
    result = run_on_server(comfy.url, PROMPT, tmp_path)
    assert mine.read_bytes() == b"mine"
    assert [path.name for path in result.files["4"]] == [
        "protected_00002_.png", "protected_00003_.png", "PROTECTED_00004_.png", "a.png", "a_2.png", "A_3.PNG"
    ]  # fmt: skip
    assert all(path.read_bytes() == png_bytes() for path in result.files["4"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", b"<html>not found</html>"),
        ("a.png", png_bytes()[:-30]),
        ("a.png", picture_bytes("JPEG")),
        ("a.png", picture_bytes("EPS")),
        ("a.jpg", picture_bytes("JPEG")[:200]),
        ("a.webp", picture_bytes("WEBP")[:-9]),
        ("a.tiff", b"MM\x00*"),
        ("a.mp4", b"MZ"),
        ("a.exr", png_bytes()),
    ],
)
@pytest.mark.usefixtures("polling")
def test_what_is_no_picture_is_not_kept(comfy, tmp_path, name, data):
    comfy.entry = ended(outputs={"4": {"images": [saved(name)]}})
    comfy.answers["/view"] = (200, data)
    assert f"gives as {name} is damaged or no such picture" in fails(comfy, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("suffix", "data"),
    [(f".{kind.lower()}", picture_bytes(kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    + [(".MP4", b"\0\0\0\x20ftypisom"), (".webm", b"\x1a\x45\xdf\xa3..."), (".apng", png_bytes())],
)
def test_pictures_of_every_kind_are_known(suffix, data):
    assert is_what_it_claims(suffix.lower(), data)


def test_a_picture_too_large_to_decode_here_is_kept(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert is_what_it_claims(".png", png_bytes())


# Names a server gives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subfolder", "filename", "expected"),
    [
        ("antipure", "a_00001_.png", "antipure/a_00001_.png"),
        ("", "a.PNG", "a.PNG"),
        ("../../..", "a.png", "a.png"),
        ("/etc", "..\\..\\a.png", "etc/a.png"),
        ("C:\\x\\..", "D:a.png", "C_/x/D_a.png"),
        ("a/./.../b", "/home/a.png", "a/b/home/a.png"),
        ("", "a\x00\n<b>.png", "a___b_.png"),
        ("x" * 300, "y" * 300 + ".png", f"{'x' * 100}/{'y' * 96}.png"),
        ("", "é" * 300 + ".png", "é" * 96 + ".png"),
        ("", "日" * 300 + ".png", "日" * 65 + ".png"),
        ("/".join("abcdefghijkl"), "m.png", "f/g/h/i/j/k/l/m.png"),
        ("con", "Com1 .tar.png", "_con/_Com1 .tar.png"),
        ("LPT²", "nul.png", "_LPT²/_nul.png"),
        ("", "a\x7f\x9b\u202egnp.\ud800.png", "a___gnp._.png"),
        ("", "A\u0308.png", "Ä.png"),
    ],
)
def test_names_stay_in_the_folder(tmp_path, subfolder, filename, expected):
    path = local_name(subfolder, filename)
    assert path == Path(expected)
    assert (tmp_path / path).resolve().is_relative_to(tmp_path)


@pytest.mark.parametrize("filename", ["", ".", "..", "../", ".png", ".bashrc", "conftest.py", "a.png.exe"])
def test_only_pictures_are_downloaded(filename):
    with pytest.raises(AntiPureError, match="was not downloaded"):
        local_name("", filename)


@pytest.mark.usefixtures("polling")
def test_a_hostile_server_writes_nothing_outside(comfy, tmp_path):
    comfy.entry = ended(outputs={"4": {"images": [saved("../../evil.png", "../.."), "nonsense", None]}, "5": 3})
    result = run_on_server(comfy.url, PROMPT, tmp_path / "out")
    assert result.files == {"4": [tmp_path / "out" / "evil.png"]}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Ctrl-C ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "pending"])
@pytest.mark.parametrize("over_socket", [False, True])
def test_ctrl_c_stops_our_run_only(comfy, tmp_path, monkeypatch, state, over_socket):
    comfy.state, comfy.empty_polls = state, 10**6

    def ctrl_c(*args):
        raise KeyboardInterrupt

    if over_socket:
        monkeypatch.setattr("websocket.WebSocket.recv", ctrl_c)
    else:
        monkeypatch.setitem(sys.modules, "websocket", None)
        monkeypatch.setattr(time, "sleep", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run_on_server(comfy.url, PROMPT, tmp_path)
    own = comfy.prompt["prompt_id"]
    stops = [("/queue", {"delete": [own]})] + ([("/interrupt", {"prompt_id": own})] if state == "running" else [])
    assert comfy.calls[1:] == stops


@pytest.mark.usefixtures("polling")
def test_ctrl_c_passes_when_the_server_is_gone(comfy, tmp_path, monkeypatch):
    def ctrl_c(*args):
        comfy.answers["/queue"] = (502, b"")
        raise KeyboardInterrupt

    comfy.empty_polls = 10**6
    monkeypatch.setattr(time, "sleep", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run_on_server(comfy.url, PROMPT, tmp_path)
