"""Run an API workflow on a ComfyUI server: upload pictures, queue, show progress, download what SaveImage wrote.

Everything a server answers is untrusted: connection.py bounds it, downloads.py checks it, and shapes are checked here.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import time
import uuid
from pathlib import Path

from ..methods.errors import AntiPureError
from ..methods.files import check_writable
from . import connection
from .connection import Server, Unreachable, connect_websocket
from .downloads import download
from .graph import title
from .pictures import check_picture_file
from .result import Result
from .sources import loader_of
from .terminal import one_line

POLL_SECONDS = 1.0
CHECK_SECONDS = 10.0  # how often the server is asked for the run while its websocket tells of it
_LOADERS = ("LoadImage", "LoadImageMask")
_LAST_EVENTS = ("execution_success", "execution_error", "execution_interrupted")


def run_on_server(url: str, prompt: dict, out: Path) -> Result:
    """Run an API workflow on the ComfyUI at `url`; what SaveImage writes there is downloaded into `out`.

    LoadImage inputs that are files here are uploaded; other names are the server's. Ctrl-C stops the run there, too.
    Raises `AntiPureError` when the server cannot be reached, refuses the workflow, or fails.
    """
    server = Server(url)
    if any("Save" in str(node["class_type"]) for node in prompt.values()):
        check_writable(out)
    _check_nodes(server, prompt)
    left_out = _left_out(prompt)
    prompt = _upload_pictures(server, prompt)
    client_id, prompt_id = str(uuid.uuid4()), str(uuid.uuid4())
    with contextlib.ExitStack() as stack:
        socket = connect_websocket(server, client_id)
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
    result = _download(server, entry, Path(out))
    result.notes += left_out
    return result


def _check_nodes(server: Server, prompt: dict) -> None:
    known = server.json("/object_info")
    if missing := sorted({str(node["class_type"]) for node in prompt.values()} - known.keys()):
        raise AntiPureError(
            f"The ComfyUI at {server.base} has no node {', '.join(missing)}; install the pack there and restart it."
        )


def _left_out(prompt: dict) -> list[str]:
    """What the server leaves out of local files in pictures that are made from them, in words."""
    savers = [node_id for node_id, node in prompt.items() if node["class_type"] == "SaveImage"]
    loaders = dict.fromkeys(loader_of(prompt, node_id) for node_id in savers)
    names = [prompt[loader].get("inputs", {}).get("image") for loader in loaders if loader is not None]
    paths = dict.fromkeys(os.path.expanduser(name) for name in names if isinstance(name, str))
    return [note for path in paths if os.path.isfile(path) for note in check_picture_file(Path(path))]


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


def _follow(socket, server: Server, prompt: dict, prompt_id: str) -> None:
    """Show progress until the run ends or is lost, or the socket drops. How it ended is for the history to say.

    The server is asked for the run now and then, for it may send nothing, or speak of other runs only.
    """
    from tqdm import tqdm
    from websocket import WebSocketException, WebSocketTimeoutException

    with tqdm(desc="waiting in the queue", leave=False, disable=None, dynamic_ncols=True, file=sys.stderr) as bar:
        socket.settimeout(CHECK_SECONDS)
        socket.deadline = time.monotonic() + CHECK_SECONDS
        while True:
            event = {}
            try:
                message = socket.recv()
                event = {} if isinstance(message, bytes) else _dict(json.loads(message))
            except WebSocketTimeoutException:
                pass
            except (WebSocketException, OSError, ValueError, RecursionError):
                return
            if time.monotonic() > socket.deadline:
                try:
                    if _look(server, prompt_id):
                        return
                except AntiPureError:
                    return
                socket.deadline = time.monotonic() + CHECK_SECONDS
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


def _look(server: Server, prompt_id: str) -> dict | None:
    """The run's history entry; None while it is in the queue. Raises `AntiPureError` when the server forgot it."""
    for _ in range(2):  # so that a run that ends between two questions is not taken for a lost one
        if entry := server.history(prompt_id):
            return entry
        if prompt_id in server.queued("queue_running", "queue_pending"):
            return None
    raise AntiPureError(
        f"The ComfyUI at {server.base} no longer knows the run: it was restarted, or the run was removed "
        "from its queue."
    )


def _wait(server: Server, prompt_id: str) -> dict:
    """The run's history entry, as soon as there is one. Raises `Unreachable` when the server stays away."""
    delay, answered = 0.05, time.monotonic()
    while True:
        try:
            if entry := _look(server, prompt_id):
                return entry
            answered = time.monotonic()
        except Unreachable:
            if time.monotonic() - answered > connection.PATIENCE:
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
        reason = one_line(lines[0] if lines else error.get("exception_type"))
        raise AntiPureError(f"{_label(prompt, error.get('node_id'))} failed on the server: {reason}")
    if status.get("status_str") == "error":
        raise AntiPureError("The run failed on the server; its log says why.")


def _download(server: Server, entry: dict, out: Path) -> Result:
    result = Result()
    for node_id, shown in _dict(entry.get("outputs")).items():
        for image in _list(_dict(shown).get("images")):
            if isinstance(image, dict) and image.get("type") == "output":
                path = download(server, str(image.get("subfolder") or ""), str(image.get("filename")), out)
                result.files.setdefault(node_id, []).append(path)
        if ui := {key: value for key, value in _dict(shown).items() if key != "images"}:
            result.ui[node_id] = ui
    return result


def _label(prompt: dict, node_id: object) -> str:
    if isinstance(node_id, str) and node_id in prompt:
        return one_line(f"{title(prompt, node_id)} (node {node_id})")
    return f"Node {one_line(node_id)}"


def _message(error: object) -> str:
    message, details = (one_line(_dict(error).get(key) or "") for key in ("message", "details"))
    return f"{message or one_line(error)} ({details})" if details else message or one_line(error)


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list:
    return value if isinstance(value, list) else []
