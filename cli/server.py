"""Run an API workflow on a ComfyUI server: upload pictures, queue, show progress, download what SaveImage wrote.

Everything a server answers is untrusted: names are sanitised, and shapes of answers are checked.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import http.client
import io
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from PIL import Image

from ..methods.errors import AntiPureError
from ..methods.files import write_file
from .graph import title
from .result import Result

TIMEOUT = 30.0  # seconds without an answer, for each call
PATIENCE = 60.0  # seconds a server may be away while it runs our workflow
POLL_SECONDS = 1.0
UPLOAD_FOLDER = "antipure"
_LOADERS = ("LoadImage", "LoadImageMask")
_SAVED = {".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".exr", ".avif", ".mp4", ".webm"}
_LAST_EVENTS = ("execution_success", "execution_error", "execution_interrupted")


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

    def call(self, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """GET, or POST with a body: status and answer. Raises `Unreachable` when there is none."""
        try:
            request = urllib.request.Request(self.base + path, body, {"Content-Type": kind} if body else {})
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            if error.code not in (502, 503, 504):  # those come from a proxy in front of it
                with error, contextlib.suppress(OSError, http.client.HTTPException):
                    return error.code, error.read()
            reason = f"HTTP {error.code}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = _one_line(getattr(error, "reason", None) or error) or type(error).__name__
        raise Unreachable(f"No ComfyUI answers at {self.base} ({reason}); start it, or check the address.")

    def json(self, path: str, payload: dict | None = None, accept: tuple[int, ...] = (200,)) -> dict:
        """The JSON object this path answers with."""
        status, data = self.call(path, None if payload is None else json.dumps(payload).encode())
        with contextlib.suppress(ValueError):
            answer = json.loads(data)
            if status in accept and isinstance(answer, dict):
                return answer
        raise AntiPureError(f"{self.base} does not answer {path} as ComfyUI does (HTTP {status}); check the address.")

    def upload(self, path: str) -> str:
        """Upload a picture and return the server's name for it, the same for the same bytes."""
        try:
            data = Path(path).read_bytes()
            Image.open(io.BytesIO(data)).close()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise AntiPureError(f"{path} is not a picture that can be read; give a PNG, JPEG or WebP file.") from error
        name = hashlib.sha256(data).hexdigest()[:24] + Path(path).suffix.lower()
        boundary = uuid.uuid4().hex
        parts = {'"subfolder"': UPLOAD_FOLDER.encode(), '"overwrite"': b"true", f'"image"; filename="{name}"': data}
        body = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; name={key}\r\n\r\n".encode() + value + b"\r\n"
            for key, value in parts.items()
        )
        body += f"--{boundary}--\r\n".encode()
        status, answer = self.call("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        with contextlib.suppress(ValueError, KeyError, TypeError):
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
        items = [item for part in parts for item in _list(queue.get(part))]
        return [item[1] for item in items if isinstance(item, list) and len(item) > 1]

    def cancel(self, prompt_id: str) -> None:
        """Take our run out of the queue, or stop it; never another one's."""
        self.call("/queue", json.dumps({"delete": [prompt_id]}).encode())
        if prompt_id in self.queued("queue_running"):
            self.call("/interrupt", json.dumps({"prompt_id": prompt_id}).encode())


def run_on_server(url: str, prompt: dict, out: Path) -> Result:
    """Run an API workflow on the ComfyUI at `url`; what SaveImage writes there is downloaded into `out`.

    LoadImage inputs that are files here are uploaded; other names are the server's. Ctrl-C stops the run there, too.
    Raises `AntiPureError` when the server cannot be reached, refuses the workflow, or fails.
    """
    server = Server(url)
    _check_nodes(server, prompt)
    prompt = _upload_pictures(server, prompt)
    client_id, prompt_id = str(uuid.uuid4()), str(uuid.uuid4())
    with contextlib.ExitStack() as stack:
        socket = _connect(server, client_id)
        if socket is not None:
            stack.callback(socket.close)
        try:
            _submit(server, prompt, prompt_id, client_id)
            if socket is not None:
                _follow(socket, server, prompt, prompt_id)
            entry = _wait(server, prompt_id)
        except KeyboardInterrupt:
            with contextlib.suppress(AntiPureError):
                server.cancel(prompt_id)
            raise
    _check_success(prompt, entry)
    return _download(server, entry, Path(out))


def _check_nodes(server: Server, prompt: dict) -> None:
    known = server.json("/object_info")
    if missing := sorted({str(node["class_type"]) for node in prompt.values()} - known.keys()):
        raise AntiPureError(
            f"The ComfyUI at {server.base} has no node {', '.join(missing)}; install the pack there and restart it."
        )


def _upload_pictures(server: Server, prompt: dict) -> dict:
    """A copy of the workflow in which local files are named as on the server."""
    prompt = copy.deepcopy(prompt)
    names: dict[str, str] = {}
    for node in prompt.values():
        name = node.get("inputs", {}).get("image")
        if node["class_type"] not in _LOADERS or not isinstance(name, str):
            continue
        path = os.path.expanduser(name)
        if os.path.isfile(path):
            names[path] = names.get(path) or server.upload(path)
            node["inputs"]["image"] = names[path]
    return prompt


def _submit(server: Server, prompt: dict, prompt_id: str, client_id: str) -> None:
    request = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id}
    answer = server.json("/prompt", request, accept=(200, 400))
    problems = [
        f"{_label(prompt, node_id)}: {_message(error)}"
        for node_id, problem in _dict(answer.get("node_errors")).items()
        for error in _list(_dict(problem).get("errors"))
    ]
    if not problems and answer.get("error"):
        problems.append(_message(answer["error"]))
    if problems:
        server.cancel(prompt_id)  # a workflow with several outputs is accepted without the broken ones
        raise AntiPureError(f"The server refused the workflow: {'; '.join(problems)}.")
    if answer.get("prompt_id") != prompt_id:
        raise AntiPureError(f"{server.base} does not queue workflows as ComfyUI does; 0.3.64 or newer is needed.")


def _connect(server: Server, client_id: str):
    """The server's websocket, for progress; None without websocket-client or where it cannot be had."""
    try:
        import websocket
    except ImportError:
        return None
    try:
        address = f"ws{server.base.removeprefix('http')}/ws?clientId={client_id}"
        return websocket.create_connection(address, timeout=10, suppress_origin=True)
    except (websocket.WebSocketException, OSError, ValueError):
        return None


def _follow(socket, server: Server, prompt: dict, prompt_id: str) -> None:
    """Show progress until the run ends or the socket drops. Whether it ended well is for the history to say."""
    from tqdm import tqdm
    from websocket import WebSocketException, WebSocketTimeoutException

    with tqdm(desc="waiting in the queue", leave=False, disable=None, dynamic_ncols=True, file=sys.stderr) as bar:
        while True:
            try:
                message = socket.recv()
                event = {} if isinstance(message, bytes) else _dict(json.loads(message))
            except WebSocketTimeoutException:
                with contextlib.suppress(AntiPureError):
                    if not server.history(prompt_id):
                        continue
                return
            except (WebSocketException, OSError, ValueError):
                return
            kind, data = event.get("type"), _dict(event.get("data"))
            if data.get("prompt_id") != prompt_id:
                continue
            if kind in _LAST_EVENTS or (kind == "executing" and data.get("node") is None):
                return
            if kind == "progress":
                _show(bar, prompt, data.get("node"), data.get("value"), data.get("max"))
            elif kind == "progress_state":
                for node_id, state in _dict(data.get("nodes")).items():
                    if _dict(state).get("state") == "running":
                        _show(bar, prompt, node_id, state.get("value"), state.get("max"))


def _show(bar, prompt: dict, node_id: object, value: object, total: object) -> None:
    if bar.disable or not isinstance(value, (int, float)) or not isinstance(total, (int, float, type(None))):
        return
    description = _label(prompt, node_id)
    if bar.desc != f"{description}: ":
        bar.reset()
        bar.set_description(description, refresh=False)
    bar.n, bar.total = value, total
    bar.refresh()


def _wait(server: Server, prompt_id: str) -> dict:
    """The run's history entry, as soon as there is one. Raises `Unreachable` when the server stays away."""
    delay, answered = 0.05, time.monotonic()
    while True:
        try:
            # In this order a run that ends in between is not taken for a lost one.
            entry = server.history(prompt_id)
            lost = not entry and prompt_id not in server.queued("queue_running", "queue_pending")
            entry = entry or (server.history(prompt_id) if lost else None)
            if entry:
                return entry
            if lost:
                raise AntiPureError(
                    f"The ComfyUI at {server.base} no longer knows the run: it was restarted, or the run was removed "
                    "from its queue."
                )
            answered = time.monotonic()
        except Unreachable:
            if time.monotonic() - answered > PATIENCE:
                raise
        time.sleep(delay)
        delay = min(1.5 * delay, POLL_SECONDS)


def _check_success(prompt: dict, entry: dict) -> None:
    status = _dict(entry.get("status"))
    messages = [m for m in _list(status.get("messages")) if isinstance(m, list) and len(m) == 2]
    events = {str(kind): _dict(data) for kind, data in messages}
    if "execution_interrupted" in events:
        raise AntiPureError("The run was cancelled on the server.")
    if error := events.get("execution_error"):
        lines = str(error.get("exception_message") or "").strip().splitlines()
        reason = _one_line(lines[0] if lines else error.get("exception_type"))
        raise AntiPureError(f"{_label(prompt, error.get('node_id'))} failed on the server: {reason}")
    if status.get("status_str") == "error":
        raise AntiPureError("The run failed on the server; its log says why.")


def _download(server: Server, entry: dict, out: Path) -> Result:
    result = Result()
    for node_id, shown in _dict(entry.get("outputs")).items():
        for image in _list(_dict(shown).get("images")):
            if not isinstance(image, dict) or image.get("type") != "output":
                continue
            name, subfolder = str(image.get("filename")), str(image.get("subfolder") or "")
            path = out / local_name(subfolder, name)
            query = urlencode({"filename": name, "subfolder": subfolder, "type": "output"})
            status, data = server.call(f"/view?{query}")
            if status != 200 or not data:
                raise AntiPureError(f"The server no longer has {_one_line(name)} (HTTP {status}); run it again.")
            write_file(path, data)
            result.files.setdefault(node_id, []).append(path)
        if ui := {key: value for key, value in _dict(shown).items() if key != "images"}:
            result.ui[node_id] = ui
    return result


def local_name(subfolder: str, filename: str) -> Path:
    """A relative path made from a server's names that stays below where it is put, and names a picture."""
    text = re.sub(r'[<>:"|?*\x00-\x1f\x7f]', "_", f"{subfolder}/{filename}").replace("\\", "/")
    path = Path(*(part[-100:].strip(". ") for part in text.split("/")))
    if path.suffix.lower() not in _SAVED:
        raise AntiPureError(f"The server gives '{_one_line(filename)}' for a picture; it was not downloaded.")
    return path


def _label(prompt: dict, node_id: object) -> str:
    if isinstance(node_id, str) and node_id in prompt:
        return f"{title(prompt, node_id)} (node {node_id})"
    return f"Node {_one_line(node_id)}"


def _message(error: object) -> str:
    message, details = (_one_line(_dict(error).get(key) or "") for key in ("message", "details"))
    return f"{message or _one_line(error)} ({details})" if details else message or _one_line(error)


def _one_line(text: object) -> str:
    """At most 300 printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= 300 else line[:297] + "..."


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list:
    return value if isinstance(value, list) else []
