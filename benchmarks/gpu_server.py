"""A real ComfyUI with this pack on a GPU, for `benchmarks.gpu`: python -m benchmarks.gpu_server RESULTS KIND --walk …

KIND is one of tools/make_sd_checkpoint.py's: a checkpoint of full size with random weights is written first. The walk
is a list of before:SIDE, after:SIDE (sampling; whether both are the same bytes), probe:SIDE (gpu_probe),
protect:SIDE:STEPS (the default preset), cancel:SIDE:SECONDS and loop:SIDE (the workflow sd_purification_customization).
Results: RESULTS/server_*.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch
from antipure.benchmarks.work import write
from antipure.cli.graph import read_workflow, set_inputs
from antipure.nodes.protect import DEFAULT
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
NAME = "v1-5-pruned-emaonly-fp16.safetensors"  # what the shipped workflows ask for
PATIENCE = 200  # seconds until the server answers


class Server:
    """base: its folder. results: where figures go, under `tag`. steps: of a probe's measured work."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.work = args, Path(os.environ.get("GPU_WORK", "/tmp/antipure_gpu"))
        flags = args.flags.strip("- ").replace(" ", "").replace("--", "_")
        self.tag = "_".join(filter(None, (args.kind, flags, f"{args.cap:g}GB" if args.cap else "")))
        self.base = self.work / f"base_{args.kind}"
        self.found: dict = {}
        for name in ("custom_nodes", "input", "output", "models/checkpoints", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, target in (("antipure-comfyui", ROOT), ("gpu_probe", ROOT / "benchmarks" / "gpu_probe")):
            link = self.base / "custom_nodes" / name
            if not link.is_symlink():
                link.symlink_to(target, target_is_directory=True)

    def note(self, key: str, value) -> None:
        self.found[key] = value
        write(self.args.results / f"server_{self.tag}.json", json.loads(json.dumps(self.found, default=str)))
        print(key, json.dumps(value, default=str)[:600], flush=True)

    def checkpoint(self) -> None:
        path = self.base / "models" / "checkpoints" / NAME
        if not path.exists():
            started = time.monotonic()
            device = "cuda" if torch.cuda.is_available() else "cpu"
            command = [sys.executable, str(ROOT / "tools" / "make_sd_checkpoint.py"), str(path.with_suffix(".part"))]
            subprocess.run([*command, "--kind", self.args.kind, "--device", device], check=True)
            path.with_suffix(".part").rename(path)
            self.note("checkpoint", {"s": time.monotonic() - started, "GB": path.stat().st_size / 1e9})

    def start(self) -> None:
        stub = ROOT / "benchmarks" / "gpu_stub"
        page = self.work / "page"
        page.mkdir(exist_ok=True)
        (page / "index.html").write_text("<!doctype html><title>none</title>", encoding="utf-8")
        # The stand-in for PyAV comes last: one that is installed wins.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((os.environ.get("PYTHONPATH", ""), str(stub)))}
        flags = [*(["--cpu"] if self.args.cpu else []), *self.args.flags.split()]
        folders = ["--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base}/comfyui.db"]
        plain = ["--disable-auto-launch", "--disable-api-nodes", "--front-end-root", str(page)]
        command = [
            sys.executable,
            "main.py",
            *flags,
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.args.port),
            *folders,
            *plain,
        ]
        self.log = self.args.results / f"server_{self.tag}.log"
        with open(self.log, "wb") as file:
            self.process = subprocess.Popen(
                command, cwd=self.work / "comfyui", env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        started = time.monotonic()
        while True:
            try:
                self.note(
                    "started", {"devices": self.call("/system_stats")["devices"], "s": time.monotonic() - started}
                )
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > started + PATIENCE:
                    raise RuntimeError("the server did not start; see its log") from None
                time.sleep(0.3)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        words = ("OOM", "out of memory", "DynamicVRAM", "Cannot import", "rror", "double free")
        self.note("log", [line[-200:] for line in lines if any(word in line for word in words)][-15:])
        self.note("ended by itself", self.process.returncode not in (0, -signal.SIGINT, -signal.SIGKILL))

    def call(self, path: str, payload: dict | None = None):
        data = None if payload is None else json.dumps(payload).encode()
        url = f"http://127.0.0.1:{self.args.port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def wait(self, prompt_id: str) -> dict:
        while True:
            entry = self.call(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            if self.process.poll() is not None:
                raise RuntimeError("the server died")
            time.sleep(0.1)

    def run(self, prompt: dict) -> dict:
        """Run a prompt: its seconds, and what went wrong."""
        started = time.monotonic()
        entry = self.wait(self.call("/prompt", {"prompt": prompt})["prompt_id"])
        status = entry["status"]
        wrong = [more for name, more in status["messages"] if name in ("execution_error", "execution_interrupted")]
        keys = ("exception_message", "exception_type", "traceback", "node_type")
        error = {"error": {key: str(wrong[0].get(key))[-1500:] for key in keys}} if wrong else {}
        return {"s": time.monotonic() - started, "status": status["status_str"], **error}

    def picture(self, side: int) -> str:
        with Image.open(ROOT / "bundled" / "astronaut_face.png") as face:
            face.convert("RGB").resize((side, side), Image.LANCZOS).save(self.base / "input" / f"face{side}.png")
        return f"face{side}.png"

    # What a walk is made of ------------------------------------------------------------------------------------

    def before(self, side: int) -> None:
        self.note("sampling before", self.run(sampling("before", side)))

    def after(self, side: int) -> None:
        self.note("sampling after", self.run(sampling("after", side)))
        one, two = (
            load_file(sorted((self.base / "output" / name).glob("*.latent"))[-1])["latent_tensor"]
            for name in ("before", "after")
        )
        self.note("bit-identical sampling", bool(torch.equal(one, two)))

    def probe(self, side: int) -> None:
        out = self.args.results / f"probe_{self.tag}_{side}.json"
        inputs = {"model": ["1", 0], "vae": ["1", 2], "conditioning": ["2", 0], "image": ["3", 0], "out": str(out)}
        inputs |= {"steps": self.args.steps, "cap_gb": self.args.cap}
        load = {"class_type": "LoadImage", "inputs": {"image": self.picture(side)}}
        self.note(f"probe {side}", self.run(graph(load, {"class_type": "GpuProbe", "inputs": inputs})))

    def protect(self, side: int, steps: int) -> None:
        self.note(f"protect {side}, {steps} steps", self.run(protecting(self.picture(side), steps)))

    def cancel(self, side: int, after: float) -> None:
        started = self.call("/prompt", {"prompt": protecting(self.picture(side), 500, seed=1)})["prompt_id"]
        time.sleep(after)
        asked = time.monotonic()
        self.call("/interrupt", {})
        messages = [name for name, _ in self.wait(started)["status"]["messages"]]
        self.note("cancel", {"s until it ended": time.monotonic() - asked, "messages": messages})

    def loop(self, side: int) -> None:
        sets = [f"5.width={side}", f"5.height={side}", "6.steps=2", "8.timestep=20", "9.timestep=20"]
        sets += [
            f"12.width={side}",
            f"12.height={side}",
            "12.batch_size=1",
            *(f"{n}.steps=3" for n in (21, 31, 23, 33)),
        ]
        prompt = set_inputs(read_workflow("sd_purification_customization"), sets)
        for node in prompt.values():
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = self.picture(side)
        self.note("purification and customization", self.run(prompt))

    def walk(self, what: str) -> None:
        name, *numbers = what.split(":")
        try:
            getattr(self, name)(*map(int, numbers))
        except Exception as error:
            self.note(f"FAILED {what}", f"{type(error).__name__}: {error}")


def graph(*parts: dict) -> dict:
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": NAME}}
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}}
    return {"1": loader, "2": text, **{str(i): part for i, part in enumerate(parts, start=3)}}


def sampling(label: str, side: int) -> dict:
    """A latent under a label, which makes it another prompt to ComfyUI, so that no cache stands in for the sampling."""
    sampler = {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 7, "steps": 2,
        "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    again = {"9": {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["3", 0], "amount": 1}}}
    if label == "after":
        sampler["latent_image"] = ["9", 0]
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": side, "height": side, "batch_size": 1}}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": f"{label}/latent"}}
    prompt = graph(empty, {"class_type": "KSampler", "inputs": sampler}, save)
    return prompt | again if label == "after" else prompt


def protecting(picture: str, steps: int, seed: int = 0) -> dict:
    denoiser = {"model": ["1", 0], "vae": ["1", 2], "conditioning": ["2", 0]}
    settings = {"preset": DEFAULT, "levels": 8, "steps": steps, "seed": seed}
    return graph(
        {"class_type": "LoadImage", "inputs": {"image": picture}},
        {"class_type": "AntiPureDenoiserFromModel", "inputs": denoiser},
        {"class_type": "AntiPureProtect", "inputs": {"image": ["3", 0], "denoiser": ["4", 0], **settings}},
        {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": f"protected{seed}/image"}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("kind")
    parser.add_argument("--walk", nargs="+", required=True)
    parser.add_argument("--flags", default="", help="ComfyUI's, one text")
    parser.add_argument("--cap", type=float, default=0, help="GB: as if the card had no more (probe)")
    parser.add_argument("--steps", type=int, default=3, help="that a probe measures")
    parser.add_argument("--port", type=int, default=18734)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    args.results = args.results.resolve()
    server = Server(args)
    server.checkpoint()
    try:
        server.start()
        for what in args.walk:
            server.walk(what)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
