"""Calls to a ComfyUI server. Everything it answers is untrusted: it may be slow, endless, and of any shape."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from ..methods.errors import AntiPureError
from .pictures import check_picture_file
from .terminal import one_line

TIMEOUT = 30.0  # seconds without a byte
PATIENCE = 60.0  # seconds for an answer, and that a server may be away while it runs our workflow
SLOWEST = 16_384  # bytes per second: what a long answer may take beyond that
LONGEST_ANSWER = 64 * 2**20  # bytes; /object_info of a ComfyUI with many packs has some millions
LONGEST_PICTURE = 256 * 2**20
UPLOAD_FOLDER = "antipure"

T = TypeVar("T")


class Unreachable(AntiPureError):
    """The server gives no answer (now)."""


class Server:
    """The routes of a ComfyUI that are needed here. Raises `AntiPureError` with one sentence for all that fails."""

    def __init__(self, url: str):
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise AntiPureError(f"'{url}' is no address of a ComfyUI; give one such as http://127.0.0.1:8188.")
        self.base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        host = parts.hostname or ""
        local = host in ("localhost", "::1") or host.startswith("127.")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(*proxies)

    def call(
        self, path: str, body: bytes | None = None, kind: str = "application/json", limit: int | None = None
    ) -> tuple[int, bytes]:
        """GET, or POST with a body: status and answer.

        limit: bytes, by default `LONGEST_ANSWER`. Raises `Unreachable` when there is none, or none in time, and
        `AntiPureError` for a longer one.
        """
        limit = limit or LONGEST_ANSWER
        try:
            request = urllib.request.Request(self.base + path, body, {"Content-Type": kind} if body else {})
            answer = _Answer(self._opener, request, limit)
            beside(answer.read, answer.overdue)
        except TimeoutError:
            reason = "no whole answer in time"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = one_line(getattr(error, "reason", None) or error) or type(error).__name__
        else:
            if answer.too_long:
                raise AntiPureError(
                    f"{self.base} answers {path.partition('?')[0]} with more than {limit / 2**20:.0f} MiB, which was "
                    "not read; look what it is."
                )
            if answer.status not in (502, 503, 504):  # those come from a proxy in front of it
                return answer.status, bytes(answer.data)
            reason = f"HTTP {answer.status}"
        raise Unreachable(f"No ComfyUI answers at {self.base} ({reason}); start it, or check the address.")

    def json(self, path: str, payload: dict | None = None, accept: tuple[int, ...] = (200,)) -> dict:
        """The JSON object this path answers with."""
        status, data = self.call(path, None if payload is None else json.dumps(payload).encode())
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(data)
            if status in accept and isinstance(answer, dict):
                return answer
        raise AntiPureError(f"{self.base} does not answer {path} as ComfyUI does (HTTP {status}); check the address.")

    def upload(self, path: str) -> str:
        """Upload a picture and return the server's name for it, the same for the same bytes."""
        check_picture_file(Path(path))
        data = Path(path).read_bytes()
        name = hashlib.sha256(data).hexdigest()[:24] + Path(path).suffix.lower()
        boundary = uuid.uuid4().hex
        parts = {'"subfolder"': UPLOAD_FOLDER.encode(), '"overwrite"': b"true", f'"image"; filename="{name}"': data}
        body = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; name={key}\r\n\r\n".encode() + value + b"\r\n"
            for key, value in parts.items()
        )
        body += f"--{boundary}--\r\n".encode()
        status, answer = self.call("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            answer = json.loads(answer)
            return f"{answer['subfolder']}/{answer['name']}".strip("/")
        raise AntiPureError(f"{self.base} did not take the upload of {path} (HTTP {status}).")

    def history(self, prompt_id: str) -> dict | None:
        """What the server noted about a run when it ended; None before."""
        entry = self.json(f"/history/{quote(prompt_id, safe='')}").get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def queued(self, *parts: str) -> list:
        """Ids of the runs in "queue_running" or "queue_pending"."""
        queue = self.json("/queue")
        lists = [queue.get(part) for part in parts]
        items = [item for found in lists if isinstance(found, list) for item in found]
        return [item[1] for item in items if isinstance(item, list) and len(item) > 1]

    def cancel(self, prompt_id: str) -> None:
        """Take our run out of the queue, or stop it; never another one's."""
        self.call("/queue", json.dumps({"delete": [prompt_id]}).encode())
        if prompt_id in self.queued("queue_running"):
            self.call("/interrupt", json.dumps({"prompt_id": prompt_id}).encode())


class _Answer:
    """An answer while it comes in."""

    def __init__(self, opener: urllib.request.OpenerDirector, request: urllib.request.Request, limit: int):
        self.opener, self.request, self.limit = opener, request, limit
        self.status, self.data, self.too_long, self.given_up = 0, bytearray(), False, False
        self.sent, self.started = len(request.data or b""), time.monotonic()  # type: ignore[arg-type]

    def read(self) -> None:
        try:
            answer: Any = self.opener.open(self.request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.status = answer.status if hasattr(answer, "status") else answer.code
            while not self.given_up:
                self.too_long = len(self.data) + (getattr(answer, "length", None) or 0) > self.limit
                if self.too_long:
                    return
                part = answer.read1(65536)
                if not part:
                    if missing := getattr(answer, "length", None):
                        raise http.client.IncompleteRead(b"", missing)
                    return
                self.data += part

    def overdue(self) -> bool:
        """Whether it takes too long for what has come. One that is, ends with its next byte."""
        allowed = PATIENCE + (self.sent + len(self.data)) / SLOWEST
        self.given_up = time.monotonic() - self.started > allowed
        return self.given_up


def beside(work: Callable[[], T], overdue: Callable[[], bool]) -> T:
    """What `work` returns or raises, in a thread of its own. `TimeoutError` once overdue: then it is left behind.

    The timeouts of sockets bound single waits only: a byte now and then would hold a call for ever.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # for whoever waits
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if thread.is_alive() and overdue():
            raise TimeoutError
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def connect_websocket(server: Server, client_id: str):
    """The server's websocket, for progress; None without websocket-client or where it cannot be had in time.

    Of each message it takes `LONGEST_ANSWER` bytes at most. `recv` raises a `WebSocketTimeoutException` after its
    `deadline`, whatever trickles in.
    """
    try:
        import websocket
    except ImportError:
        return None

    class Bounded(websocket.WebSocket):
        deadline, taken = math.inf, 0

        def _recv(self, bufsize: int) -> bytes:
            if time.monotonic() > self.deadline:
                raise websocket.WebSocketTimeoutException("its time is over")
            part = super()._recv(bufsize)
            self.taken += len(part)
            if self.taken > LONGEST_ANSWER:
                raise websocket.WebSocketException("a message without end")
            return part

        def recv(self) -> str | bytes:
            message = super().recv()
            self.taken = 0
            return message

    address = f"ws{server.base.removeprefix('http')}/ws?clientId={client_id}"
    started = time.monotonic()
    try:
        return beside(
            lambda: websocket.create_connection(address, timeout=10, suppress_origin=True, class_=Bounded),
            lambda: time.monotonic() - started > TIMEOUT,
        )
    except (websocket.WebSocketException, OSError, ValueError):
        return None
