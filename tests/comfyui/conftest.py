"""Real ComfyUI servers, one after the other, with this pack linked into them.

COMFYUI_PATH lists checkouts, or folders that hold checkouts. A checkout runs with the interpreter its file
`.antipure-python` names, else with COMFYUI_PYTHON, else with the one that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "antipure-comfyui"  # the dash: a folder name that no `import` statement could name
START_SECONDS = 180


def checkouts() -> list[Path]:
    found = []
    for entry in filter(None, os.environ.get("COMFYUI_PATH", "").split(os.pathsep)):
        path = Path(entry).expanduser()
        candidates = [path, *sorted(path.iterdir())] if path.is_dir() else []
        found += [candidate for candidate in candidates if (candidate / "comfyui_version.py").is_file()]
    return found


@dataclass
class ComfyUI:
    """A running server. base: its folder with input, output, models and custom_nodes."""

    version: str
    url: str
    base: Path
    log_path: Path
    process: subprocess.Popen

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def json(self, path: str) -> dict:
        return json.loads(self.get(path))

    def offer(self, checkpoint: Path, name: str) -> None:
        """Link a checkpoint into the server's models."""
        link = self.base / "models" / "checkpoints" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(checkpoint)

    def resident(self) -> int:
        """Bytes of the server's own memory: without mapped files. Skips where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.is_file():
            pytest.skip("the server's memory is read from /proc")
        return int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text()).group(1)) * 1024

    def peak_during(self, work: Callable[[], object]) -> int:
        """The largest `resident` while work() runs."""
        done, most = threading.Event(), [self.resident()]

        def watch() -> None:
            while not done.wait(0.02):
                most[0] = max(most[0], self.resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            work()
        finally:
            done.set()
            watcher.join()
        return most[0]

    def post(self, path: str, payload: dict) -> bytes:
        request = urllib.request.Request(
            self.url + path, json.dumps(payload).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


def interpreter(checkout: Path) -> str:
    """The Python that runs this checkout."""
    named = checkout / ".antipure-python"
    return named.read_text().strip() if named.is_file() else os.environ.get("COMFYUI_PYTHON", sys.executable)


def start(checkout: Path, folder: Path) -> ComfyUI:
    """Start a server with its own folders below `folder`, and wait until it answers."""
    base = folder / "base"
    for name in ("custom_nodes", "input", "output", "models", "temp", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / FOLDER).symlink_to(ROOT, target_is_directory=True)
    with Image.open(ROOT / "bundled" / "astronaut_face.png") as face:
        face.convert("RGB").crop((32, 32, 96, 96)).save(base / "input" / "example.png")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    arguments += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
    arguments += ["--disable-auto-launch", "--disable-api-nodes"]
    if frontend := os.environ.get("COMFYUI_FRONTEND"):  # a newer page than the checkout's own
        arguments += ["--front-end-root", str(Path(frontend).expanduser().resolve())]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # 64-px pictures: more threads only wait for each other
    log_path = folder / "server.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [interpreter(checkout), "main.py", *arguments],
            cwd=checkout,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    version = re.search(r'__version__ = "(.+)"', (checkout / "comfyui_version.py").read_text()).group(1)
    server = ComfyUI(version, f"http://127.0.0.1:{port}", base, log_path, process)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.json("/system_stats")
            return server
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                stop(server)
                pytest.fail(f"ComfyUI {version} did not start:\n{server.log()[-4000:]}", pytrace=False)
            time.sleep(0.2)


def stop(server: ComfyUI) -> None:
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session", params=checkouts() or [None], ids=lambda path: path.name if path else "none")
def comfyui(request, tmp_path_factory):
    """A running ComfyUI; tests are grouped by it, so that only one runs at a time."""
    if request.param is None:
        pytest.skip("set COMFYUI_PATH to a ComfyUI checkout, or a folder of them, to test inside real servers")
    server = start(request.param, tmp_path_factory.mktemp("comfyui"))
    yield server
    stop(server)


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory):
    """random_checkpoint(kind): a checkpoint of tools/make_sd_checkpoint.py, written once."""
    written = {}

    def write(kind: str) -> Path:
        if kind not in written:
            written[kind] = tmp_path_factory.mktemp("checkpoints") / f"{kind}.safetensors"
            command = [sys.executable, str(ROOT / "tools" / "make_sd_checkpoint.py"), str(written[kind])]
            subprocess.run([*command, "--kind", kind], check=True, capture_output=True)
        return written[kind]

    yield write
    for path in written.values():
        path.unlink(missing_ok=True)  # pytest keeps the folders of its last runs


@pytest.fixture(scope="session", params=checkouts() or [None], ids=lambda path: path.name if path else "none")
def run_in_checkout(request):
    """Run a script of this folder with a checkout's classes and interpreter, without a server: its output."""
    if request.param is None:
        pytest.skip("set COMFYUI_PATH to a ComfyUI checkout, or a folder of them, to test with real ComfyUI classes")

    def run(script: str, *more: str) -> str:
        command = [interpreter(request.param), str(Path(__file__).parent / script), str(ROOT), *more, "--cpu"]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=request.param, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    server = getattr(item, "funcargs", {}).get("comfyui")
    if report.failed and isinstance(server, ComfyUI):
        report.sections.append((f"log of ComfyUI {server.version}", server.log()[-4000:]))
