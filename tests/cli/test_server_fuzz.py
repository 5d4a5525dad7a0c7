"""Hypothesis against `antipure run`, `measure` and `report --server`: whatever a server replies, to any of its routes.

They end in bounded time, with success or one sentence; nothing is written outside the output folder, and no control
character reaches the terminal raw. Seeded: the same cases every time; `make nightly` tries thousands.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import struct
import sys
import tempfile
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from antipure.cli import connection
from antipure.cli import server as client
from antipure.cli.main import main
from antipure.cli.terminal import controls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

ID = "PROMPT_ID"  # in a reply: the id of the run
LONGEST_RUN = 10  # seconds
DEVICES = {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}


def picture_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(buffer, kind)
    return buffer.getvalue()


PNG, JPEG = picture_bytes("PNG"), picture_bytes("JPEG")


class ScriptedServer(ThreadingHTTPServer):
    """A ComfyUI whose first replies to each route are scripted: (status, body), or bytes instead of HTTP, or "stall".

    After them it answers as it should, so that every run has an end.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: dict[str, list] = {}
        self.prompt_id = ""
        self.left = threading.Event()  # the run is over

    def begin(self, script: dict[str, list]) -> None:
        self.script = {route: list(replies) for route, replies in script.items()}
        self.prompt_id = ""
        self.left = threading.Event()

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.reply(urlsplit(self.path).path.split("/")[1])

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        route = self.path.split("/")[1]
        if route == "prompt":
            self.server.prompt_id = json.loads(body)["prompt_id"]
        self.reply(route)

    def reply(self, route: str) -> None:
        fake = self.server
        left = fake.left
        scripted = fake.script.get(route)
        reply = scripted.pop(0) if scripted else self.as_it_should(route)
        if reply == "stall":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
            left.wait(LONGEST_RUN)
        elif isinstance(reply, bytes):
            self.wfile.write(reply)
        elif isinstance(reply, list):
            self.websocket(reply)
        else:
            status, body = reply
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            body = body.replace(ID.encode(), fake.prompt_id.encode())
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def as_it_should(self, route: str) -> tuple[int, object]:
        images = {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}
        return {
            "object_info": (200, {name: {} for name in NODES}),
            "prompt": (200, {"prompt_id": ID, "number": 1, "node_errors": {}}),
            "queue": (200, {"queue_running": [], "queue_pending": []}),
            "history": (200, {ID: {"status": {"status_str": "success", "messages": []}, "outputs": {"4": images}}}),
            "view": (200, PNG),
        }.get(route, (404, b""))

    def websocket(self, messages: list) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest())
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        for message in messages:
            if not isinstance(message, bytes):
                data = json.dumps(message).encode().replace(ID.encode(), self.server.prompt_id.encode())
                size = bytes([len(data)]) if len(data) < 126 else struct.pack(">BH", 126, len(data) % 2**16)
                message = b"\x81" + size + data
            self.wfile.write(message)


NODES = ("LoadImage", "AntiPureLoadDenoiser", "AntiPureProtect", "AntiPureRobustnessReport", "SaveImage",
         "AntiPureMetrics", "AntiPureInspect", "PreviewImage", "PreviewAny")  # fmt: skip


# What it replies ------------------------------------------------------------------------------------------------

_hard = [
    "",
    "..",
    "../../a.png",
    "/etc/passwd",
    "C:\\a.png",
    "con.png",
    "a:b.png",
    "a. . ",
    "a\0.png",
    "\x1b[31mred",
    "\x9b2J",
    "\u202egnp.exe",
    "\ud800.png",
    "x" * 5000 + ".png",
    "a.png",
    "A.PNG",
    "a\r\nb",
    ID,
    "1",
    "3",
]
_text = st.one_of(st.sampled_from(_hard), st.text(max_size=12))
_plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _text, st.just(10**400))
_json = st.recursive(
    _plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3), max_leaves=8
)


def record(**fields) -> st.SearchStrategy:
    """An object with these keys, some of them missing or of another kind."""
    return st.fixed_dictionaries({}, optional={key: st.one_of(value, value, _json) for key, value in fields.items()})


_filename = st.one_of(
    _text, st.builds("{}.{}".format, _text, st.sampled_from(["png", "PNG", "jpg", "exr", "py", "tif"]))
)
_image = record(filename=_filename, subfolder=_text, type=st.sampled_from(["output", "output", "temp"]))
_shown = record(
    images=st.lists(_image, max_size=3),
    text=st.lists(_text, max_size=2),
    metrics=st.lists(_json, max_size=1),
    report=st.lists(st.dictionaries(_text, _json, max_size=2), max_size=1),
    markdown=st.lists(_text, max_size=1),
)
_failure = record(node_id=_text, exception_message=_text, exception_type=_text)
_event = st.sampled_from(["execution_error", "execution_interrupted", "execution_success"])
_status = record(
    status_str=st.sampled_from(["success", "error"]),
    messages=st.lists(st.tuples(_event, _failure).map(list), max_size=2),
)
_outputs = st.dictionaries(st.sampled_from(["3", "4", "5", "6", "7"]) | _text, _shown, max_size=3)
_entry = record(status=_status, outputs=_outputs)
_problem = record(message=_text, details=_text)
_queue = st.lists(st.one_of(st.just([0, ID, {}]), _json), max_size=2)
_message = record(
    type=st.sampled_from(["progress", "progress_state", "executing", "execution_error"]),
    data=record(prompt_id=st.just(ID), node=_text, value=_plain, max=_plain, nodes=st.dictionaries(_text, _shown)),
)


@st.composite
def damaged(draw, good: bytes) -> bytes:
    """Bytes with a piece cut out, changed, or put in."""
    at, length = draw(st.integers(0, len(good))), draw(st.integers(0, 8))
    return good[:at] + draw(st.binary(max_size=8)) + good[at + length :]


_heads = [
    b"",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    b"HTTP/1.1 999999\r\n\r\n",
    b"HTTP/1.1 301 M\r\nLocation: file:///etc/passwd\r\n\r\n",
    b"HTTP/1.1 302 F\r\nLocation: http://[1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    b"HTTP/1.1 401 U\r\nWWW-Authenticate: \xff\r\n\r\n",
    b"HTTP/1.1 500 \x1b[31m\x07\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nLocation: /\r\nX: " + b"x" * 70_000,
]
_raw = st.one_of(
    st.sampled_from(_heads), st.binary(max_size=40), damaged(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
)
_codes = st.sampled_from([200, 200, 200, 200, 201, 204, 301, 400, 401, 404, 500, 502, 503])
_bodies = st.one_of(st.binary(max_size=20), st.sampled_from([b"[" * 10**5, b'{"a":' * 10**5, b"1" * 5000, b"NaN"]))


def replies(good: st.SearchStrategy, most: int = 1) -> st.SearchStrategy:
    """The first replies to a route: mostly of the right kind with wrong contents."""
    ok = st.tuples(st.just(200), good)
    other = st.one_of(st.tuples(_codes, good | _json | _bodies), _raw)
    return st.lists(st.one_of(ok, ok, ok, ok, other), max_size=most)


_view = st.one_of(st.just(PNG), st.just(PNG), st.just(JPEG), damaged(PNG), damaged(JPEG), st.binary(max_size=30))
_known = st.fixed_dictionaries({name: st.none() for name in NODES})
SCRIPTS = st.fixed_dictionaries(
    {
        "object_info": st.one_of(st.just([]), st.just([]), replies(st.one_of(_known, _known, _json))),
        "prompt": st.one_of(
            st.just([]),
            replies(
                record(
                    prompt_id=st.just(ID),
                    node_errors=st.dictionaries(_text, record(errors=st.lists(_problem, max_size=2)), max_size=2),
                    error=_problem | _text,
                )
            ),
        ),
        "queue": replies(record(queue_running=_queue, queue_pending=_queue), 3),
        "history": replies(st.one_of(*[st.fixed_dictionaries({ID: _entry})] * 3, st.just({}), _json), 3),
        "view": replies(_view, 4),
        "ws": st.one_of(
            st.just([]),
            replies(_json),
            st.lists(st.one_of(_message, _message, _json, st.binary(max_size=12)), max_size=4).map(lambda m: [m]),
        ),
    }
)
COMMANDS = st.sampled_from(["run", "run", "run", "measure", "report"])


# What must hold -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", 0.4)
        patch.setattr(connection, "TIMEOUT", 0.4)
        patch.setattr(client, "CHECK_SECONDS", 0.1)
        patch.setattr(client, "POLL_SECONDS", 0.05)
        fake = ScriptedServer()
        threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield fake
        fake.shutdown()
        fake.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


def check_replies(fake: ScriptedServer, place: Path, command: str, script: dict[str, list], *, polls: bool) -> int:
    """Run a command against these replies; its exit status."""
    inside = Path(tempfile.mkdtemp(dir=place))
    out = inside / "output"
    arguments = {
        "run": ["run", "protect"],
        "measure": ["measure", "a.png", "b.png", "--json"],
        "report": ["report", "a.png"],
    }[command]
    fake.begin(script)
    stdout, stderr = io.StringIO(), io.StringIO()
    started = time.monotonic()
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            patch.chdir(inside)
            if polls:
                patch.setitem(sys.modules, "websocket", None)
            status = main([*arguments, "--server", f"http://127.0.0.1:{fake.server_port}"])
        assert time.monotonic() - started < LONGEST_RUN
        assert status in (0, 2)
        told = stderr.getvalue()
        assert told.startswith("antipure: ") if status else not told
        assert told.count("\n") == (1 if status else 0)
        assert not [c for c in told + stdout.getvalue() if controls(c) and c not in "\n\t"]
        assert list(place.iterdir()) == [inside]
        assert {path.name for path in inside.iterdir()} <= {"output"}
        check_files(out)
    finally:
        fake.left.set()
        shutil.rmtree(inside)
    return status


def check_files(out: Path) -> None:
    """What was kept is a picture, or the report, under a name that every file system takes and tells from others."""
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len({str(path).casefold() for path in files}) == len(files)
    for path in files:
        if path.name not in ("report.json", "report.md"):
            assert path.suffix.lower() in (".png", ".jpg", ".tif", ".exr"), path
        if path.suffix.lower() in (".png", ".jpg"):
            Image.open(path).load()
        for part in path.relative_to(out).parts:
            assert not any(c in '<>:"\\|?*' or controls(c) for c in part)
            assert part == part.strip(" .")
            assert part.split(".")[0].strip().upper() not in DEVICES
            assert len(part.encode()) <= 255


def fuzzed(examples: int, *strategies):
    bounds = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    return lambda test: bounds(given(*strategies)(test))


@fuzzed(150, COMMANDS, SCRIPTS, st.booleans())
def test_whatever_a_server_replies(scripted, place, command, script, polls):
    check_replies(scripted, place, command, script, polls=polls)


@pytest.mark.nightly
@fuzzed(5000, COMMANDS, SCRIPTS, st.booleans())
def test_whatever_a_server_replies_nightly(scripted, place, command, script, polls):
    check_replies(scripted, place, command, script, polls=polls)


@pytest.mark.parametrize("route", ["object_info", "prompt", "queue", "history", "view"])
def test_a_server_that_stops_in_the_middle(scripted, place, route):
    script = {"history": [(200, {})], route: ["stall"]}
    assert check_replies(scripted, place, "run", script, polls=True) in (0, 2)


@pytest.mark.parametrize("polls", [True, False])
def test_replies_as_they_should_be_succeed(scripted, place, polls):
    """What the fuzzed replies are changed from."""
    assert check_replies(scripted, place, "run", {}, polls=polls) == 0
