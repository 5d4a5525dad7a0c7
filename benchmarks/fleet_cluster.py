"""Kills on a real Ray cluster: `python -m benchmarks.fleet_cluster` in an environment with `antipure[ray]`.

A cluster of two workers on this machine protects 60 pictures, 6 of them broken. One worker is killed (-9) in the
middle, then the driver, which is then started again with the same command. All of it is compared with a run of one
process: 54 outputs, equal in every byte, each within its budget; 6 sentences; no half file; no line twice.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

FACE = Path(__file__).resolve().parent.parent / "bundled" / "astronaut_face.png"
BROKEN = ("empty.png", "text.png", "cut.png", "floating.tif", "huge.png", "gone.png")
HIDDEN = re.compile(r"\.\d+-[0-9a-f]{32}\.part")
LEVELS = 8
ALL = sys.maxsize
TRIES = 5
# `ray start` gives up when its node has not joined after 30 s, which no setting changes; busy machines take longer.
PATIENT = """
import time
from ray._private import services
from ray.scripts import scripts
ask, end = services.get_node, time.monotonic() + 150
def patient(*arguments, **settings):
    while True:
        try:
            return ask(*arguments, **settings)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(1)
services.get_node = patient
scripts.main()
"""
# The same of Ray's other clocks, in milliseconds, times and seconds.
CLOCKS = {
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_health_check_timeout_ms": "120000",
    "RAY_health_check_failure_threshold": "50",
    "RAY_worker_register_timeout_seconds": "900",
}


def make_pictures(folder: Path, good: int = 54, broken: tuple[str, ...] = BROKEN) -> None:
    """So many crops of the bundled photo, 64 to 128 px in folders of ten, and files that are no pictures."""
    face = Image.open(FACE).convert("RGB")
    for i in range(good):
        side = 64 + i % 4 * 16
        x, y = (i * 7) % (129 - side), (i * 11) % (129 - side)
        path = folder / f"part {i // 10}" / f"picture {i:02}.{('png', 'jpg', 'webp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        face.crop((x, y, x + side, y + side)).save(path, quality=95)
    buffer = io.BytesIO()
    face.save(buffer, "PNG")
    for i, name in enumerate(broken):
        path = folder / f"part {i % 3}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "floating.tif":
            Image.new("F", (64, 64)).save(path)
        elif name == "gone.png":
            path.symlink_to(folder / "nowhere.png")
        else:
            header = Image.new("1", (20_000, 20_000))
            whole = {"empty.png": b"", "text.png": b"no picture", "cut.png": buffer.getvalue()[:5000]}
            if name == "huge.png":
                buffer = io.BytesIO()
                header.save(buffer, "PNG")
                whole[name] = buffer.getvalue()
            path.write_bytes(whole[name])


def command(folder: Path, out: Path, args: argparse.Namespace, *more: str) -> list[str]:
    settings = ["--preset", args.preset, "--steps", str(args.steps), "--levels", str(LEVELS), "--threads", "1"]
    return [sys.executable, "-m", "antipure.cli.main", "protect", str(folder), "--out", str(out), *settings, *more]


def lines_of(out: Path) -> list[dict]:
    """All whole lines of the manifest, also where a picture has two."""
    path = out / "antipure_manifest.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def saved(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


class Watched:
    """A run, looked at all the time: every file with its final name must be whole, no picture have two lines."""

    def __init__(self, arguments: list[str], out: Path, log: Path):
        self.out, self.looks, self.log = out, 0, log
        with log.open("ab") as file:
            self.process = subprocess.Popen(arguments, stdout=file, stderr=file)

    def until(self, count: int, seconds: float) -> list[dict]:
        """Wait for so many lines, or the end of the run."""
        end = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            lines = lines_of(self.out)
            self.look(lines)
            if len(lines) >= count:
                return lines
            if ended:
                assert count == ALL, self.log.read_text()[-4000:]
                return lines
            assert time.monotonic() < end, f"{len(lines)} of {count} lines after {seconds:.0f} s"
            time.sleep(0.2)

    def look(self, lines: list[dict]) -> None:
        self.looks += 1
        twice = [name for name, times in Counter(line["picture"] for line in lines).items() if times > 1]
        assert not twice, f"two lines: {twice}"
        for path in self.out.rglob("*.png"):
            if not HIDDEN.fullmatch(path.name):
                with Image.open(path) as image:
                    image.load()


def start_cluster(place: str, cpus: int) -> tuple[subprocess.Popen, str]:
    """A cluster that stays when a driver dies, and its address; tried again where the machine is too busy for Ray."""
    for attempt in range(TRIES):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        folder = Path(place, str(attempt))
        folder.mkdir()
        arguments = ["start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
        arguments += ["--include-dashboard=false", "--disable-usage-stats"]
        log = folder / "start.log"
        with log.open("wb") as file:
            whole = [sys.executable, "-u", "-c", PATIENT, *arguments]
            process = subprocess.Popen(whole, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None:
            if "Ray runtime started" in log.read_text():
                return process, f"127.0.0.1:{port}"
            time.sleep(0.5)
        stop(process)
        print(f"Ray did not start: {(log.read_text().splitlines() or [''])[-1]}", file=sys.stderr, flush=True)
    raise AssertionError("the cluster does not start")


def stop(process: subprocess.Popen) -> None:
    """End what was started in a session of its own, with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)


def measure(place: Path, args: argparse.Namespace) -> dict[str, object]:
    """Raises `AssertionError` where anything is lost; else the figures."""
    pictures, reference, out = place / "pictures", place / "reference", place / "out"
    make_pictures(pictures, args.good)
    began = time.monotonic()
    with (place / "reference.log").open("wb") as log:
        status = subprocess.run(command(pictures, reference, args), stdout=log, stderr=log).returncode
    alone = time.monotonic() - began
    assert status == 1, (place / "reference.log").read_text()
    # Ray lets in whoever has its token: one of its own for this cluster, handed on to all that is started here.
    os.environ |= CLOCKS | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    cluster, address = start_cluster(tempfile.mkdtemp(prefix="ray", dir="/tmp"), 2)
    arguments = command(pictures, out, args, "--engine", "ray", "--address", address, "--workers", "2")
    try:
        began = time.monotonic()
        run = Watched(arguments, out, place / "out.log")
        lines = run.until(args.good // 4, args.patience)
        workers = Counter(line["made_on"]["worker"] for line in lines if "worker" in line["made_on"])
        victim = int(lines[-1]["made_on"]["worker"].rpartition(":")[2])
        os.kill(victim, signal.SIGKILL)
        lines = run.until(args.good // 2, args.patience)
        before = len(lines)
        run.process.kill()
        run.process.wait()
        at_kill = len(lines_of(out))
        again = Watched(arguments, out, place / "out.log")
        lines = again.until(ALL, args.patience)
        seconds = time.monotonic() - began
        assert again.process.wait() == 1, (place / "out.log").read_text()[-4000:]
    finally:
        stop(cluster)
    assert at_kill >= before, "the kill of the driver lost lines"
    hidden = [path.name for path in out.rglob(".*.part")]
    expected, found = saved(reference), saved(out)
    budgets = []
    by_picture = {line["picture"]: line for line in lines}
    for line in (line for line in lines if not line["error"]):
        original = np.asarray(Image.open(pictures / line["picture"]).convert("RGB")).astype(int)
        made = np.asarray(Image.open(out / line["outputs"][0]["path"]).convert("RGB")).astype(int)
        budgets.append(int(np.abs(made - original).max()))
    errors = {line["picture"]: line["error"] for line in lines if line["error"]}
    killed_later = {line["made_on"].get("worker") for line in lines}
    figures = {
        "pictures": args.good + len(BROKEN),
        "outputs": len(found),
        "outputs equal in every byte to those of one process": sum(found[name] == expected.get(name) for name in found),
        "lines of the manifest": len(lines),
        "pictures with more than one line": len(lines) - len(by_picture),
        "pictures that failed with one sentence": sum("\n" not in error for error in errors.values()),
        "largest change of any pixel, levels": max(budgets),
        "workers before the kill": len(workers),
        "workers in all": len(killed_later),
        "lines when the driver was killed": at_kill,
        "looks at all files while they were made": run.looks + again.looks,
        "hidden leftovers": len(hidden),
        "seconds of one process": round(alone, 1),
        "seconds of the cluster, with both kills": round(seconds, 1),
    }
    assert sorted(found) == sorted(expected)
    assert figures["outputs"] == figures["outputs equal in every byte to those of one process"] == args.good
    assert figures["lines of the manifest"] == args.good + len(BROKEN) == len(by_picture)
    assert len(errors) == figures["pictures that failed with one sentence"] == len(BROKEN)
    assert {Path(name).name for name in errors} == set(BROKEN)
    assert max(budgets) <= LEVELS
    return figures | {"sentences": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--good", type=int, default=54, help="pictures that are whole (default 54)")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--patience", type=float, default=1800, help="seconds to wait for anything (default 1800)")
    with tempfile.TemporaryDirectory() as place:
        figures = measure(Path(place), parser.parse_args())
    sentences = figures.pop("sentences")
    print("\n".join(f"| {name} | {value} |" for name, value in figures.items()))
    print("\n".join(f"{name}: {error.replace(place, '…')}" for name, error in sorted(sentences.items())))


if __name__ == "__main__":
    main()
