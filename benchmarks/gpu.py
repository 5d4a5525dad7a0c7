"""Everything this project wants to know from a GPU, for a machine that has no network: `python -m benchmarks.gpu`.

    prepare KIT --comfyui CHECKOUT     where there is a network: writes what has to be carried, some 30 MB
    run PARTS KIT --out FOLDER         on the GPU machine, in a copy of the repository

PARTS: pixel, sd15, sd15_memory, sdxl, speed; each ends within ten minutes. KIT is a folder that git ignores, such as
output/gpu_kit: ComfyUI's source, and the packages that a machine with torch, torchvision, numpy, transformers and peft
lacks. A part of PARTS that fails or hangs costs its own time only; what is known by then stands in FOLDER: all.json,
logs.txt, versions.txt. `--cpu` is for a look without a GPU, at small sizes: no figures to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Wheels for the GPU machine: what it lacks of this project's and ComfyUI 0.33's needs. PyAV (35 MB, video only) has a
# stand-in, and of comfy-kitchen there is a wheel without its kernels, which are for quantised models.
PACKAGES = (
    "diffusers", "importlib_metadata==8.7.0", "websocket-client", "torchsde", "trampoline", "alembic", "Mako",
    "SQLAlchemy", "simpleeval", "blake3", "pydantic==2.14.4", "pydantic-core==2.50.5", "pydantic-settings",
    "python-dotenv", "annotated-types", "comfy-aimdo==0.4.13", "kornia", "kornia_rs", "spandrel",
)  # fmt: skip
PURE = ("comfy-kitchen==0.2.31",)
PLATFORMS = [f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")]
# Of a checkout: what no node of the benchmark reads.
LEFT_OUT = (
    "blueprints", "cfz", "comfy/customzluda", "comfy_api_nodes", "tests", "tests-unit", "openapi.yaml", ".git",
    ".github", "models", "input", "output", "temp", "user", "custom_nodes",
)  # fmt: skip

# name: (seconds, arguments after the Python interpreter); {results} is a folder.
PIXEL, SPEED, SERVER = ("-m", "benchmarks.gpu_pixel"), ("-m", "benchmarks.speed"), ("-m", "benchmarks.gpu_server")
TESTS = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "14")
RUNS: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {
    "pixel": {
        "checks": (200, (*PIXEL, "{results}/pixel.json")),
        "floor": (120, (*SPEED, "--devices", "cuda", "--only", "floor", "kernels", "--out", "{results}/speed")),
        "tests": (120, (*TESTS, "tests", "--ignore", "tests/comfyui")),
        "compiled": (150, (*PIXEL, "{results}/compiled.json", "--only", "compiled")),
    },
    "sd15": {
        "sd15": (330, (*SERVER, "{results}", "sd15", "--walk", "before:512", "probe:512", "protect:1024:40",
                       "cancel:1024:5", "after:512", "loop:512", "probe:1024")),
        "sd15_fp32": (100, (*SERVER, "{results}", "sd15", "--flags=--fp32-unet --fp32-vae", "--walk", "before:512",
                            "probe:512", "after:512")),
        "sd15_static": (120, (*SERVER, "{results}", "sd15", "--flags=--disable-dynamic-vram", "--walk", "before:512",
                              "probe:512", "after:512")),
    },
    "sd15_memory": {
        "sd15_6_gb": (160, (*SERVER, "{results}", "sd15", "--cap", "6", "--walk", "probe:512")),
        "sd15_8_gb": (200, (*SERVER, "{results}", "sd15", "--cap", "8", "--walk", "probe:1024")),
    },
    "sdxl": {
        "sdxl": (320, (*SERVER, "{results}", "sdxl", "--walk", "before:1024", "probe:1024", "protect:1024:40",
                       "cancel:1024:6", "after:1024")),
        "sdxl_16_gb": (200, (*SERVER, "{results}", "sdxl", "--cap", "16", "--walk", "probe:1024")),
    },
    "speed": {
        "plain": (240, (*SPEED, "--devices", "cuda", "--only", "plain", "pixels", "--repeats", "3",
                        "--out", "{results}/plain")),
        "options": (300, (*SPEED, "--devices", "cuda", "--only", "options", "fast", "--repeats", "3",
                          "--out", "{results}/options")),
    },
}  # fmt: skip
# The same on a CPU, for a look: small sizes, a small checkpoint.
ON_CPU: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {
    "pixel": {"checks": (600, (*PIXEL, "{results}/pixel.json", "--device", "cpu", "--small"))},
    "sd15": {
        "sd15": (1800, (*SERVER, "{results}", "sd15-small", "--cpu", "--steps", "1", "--walk", "before:64", "probe:64",
                       "protect:64:1", "after:64")),
    },
    "sd15_memory": {
        "sd15_6_gb": (900, (*SERVER, "{results}", "sd15-small", "--cpu", "--steps", "1", "--cap", "6", "--walk",
                            "probe:64")),
    },
    "sdxl": {
        "sdxl": (900, (*SERVER, "{results}", "sdxl-small", "--cpu", "--steps", "1", "--walk", "before:64",
                       "protect:64:1", "after:64")),
    },
    "speed": {"quick": (600, (*SPEED, "--devices", "cpu", "--quick", "--repeats", "1", "--only", "floor",
                              "--out", "{results}/speed"))},
}  # fmt: skip


def prepare(kit: Path, checkout: Path, python: str) -> None:
    """Fill the kit. checkout: of ComfyUI. python: the GPU machine's version, such as 3.12."""
    if not (checkout / "comfyui_version.py").is_file():
        sys.exit(f"{checkout} is no checkout of ComfyUI.")
    kit.mkdir(parents=True, exist_ok=True)
    wheels = kit / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(wheels)]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    of = ["--python-version", python, "--implementation"]
    subprocess.run([*command, *of, "cp", *platforms, *PACKAGES], check=True)
    subprocess.run([*command, *of, "py", "--abi", "none", "--platform", "any", *PURE], check=True)
    pack(checkout, kit / "comfyui.tar.xz")
    size = sum(file.stat().st_size for file in kit.rglob("*") if file.is_file())
    print(f"{kit}: {size / 1e6:.1f} MB to carry beside the repository")


def pack(checkout: Path, archive: Path) -> None:
    """A checkout's source, without what `LEFT_OUT` names and without tokenizers that no benchmark needs."""

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(info.name)
        left = any(path == Path(name) or Path(name) in path.parents for name in LEFT_OUT)
        other = path.suffix in (".md", ".bat") or path.name == "__pycache__" or path.name.startswith(".antipure")
        return None if left or other else info

    with tarfile.open(archive, "w:xz") as tar:
        for entry in sorted(checkout.iterdir()):
            tar.add(entry, entry.name, filter=wanted)


class Run:
    """The parts of one call. kit: as `prepare` left it. out: what comes back. work: unpacked, kept between calls."""

    def __init__(self, kit: Path, out: Path, work: Path):
        self.kit, self.out, self.work, self.results = kit.resolve(), out.resolve(), work, work / "results"
        shutil.rmtree(self.results, ignore_errors=True)
        for folder in (self.out, self.results, work / "packages"):
            folder.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "GPU_WORK": str(work)}
        self.environment["PYTHONPATH"] = os.pathsep.join(map(str, (work / "packages", work / "site", ROOT)))

    def unpack(self) -> None:
        """The package under its name, the wheels and ComfyUI, where they are not there yet."""
        link = self.work / "packages" / "antipure"
        if not link.exists():
            link.symlink_to(ROOT, target_is_directory=True)
        wheels = sorted(map(str, (self.kit / "wheels").glob("*.whl")))
        if wheels and not (self.work / "site").exists():
            install = ("install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(self.work / "site"))
            subprocess.run([sys.executable, "-m", "pip", *install, *wheels], check=True)
        if not (self.work / "comfyui").exists():
            part = self.work / "comfyui.part"
            with tarfile.open(self.kit / "comfyui.tar.xz") as tar:
                tar.extractall(part, filter="data")
            for name in ("models", "input", "output", "custom_nodes"):
                (part / name).mkdir(exist_ok=True)
            part.rename(self.work / "comfyui")

    def versions(self) -> None:
        code = (
            "import importlib, torch; names = ('triton', 'diffusers', 'transformers', 'peft', 'numpy')\n"
            "print('torch', torch.__version__, torch.backends.cudnn.version())\n"
            "for name in names:\n"
            "    try: print(name, importlib.import_module(name).__version__)\n"
            "    except ImportError: print(name, 'is not here')\n"
            "print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')\n"
        )
        said = [self._said([sys.executable, "-c", code])]
        if shutil.which("nvidia-smi"):
            said.append(self._said(["nvidia-smi"]))
        (self.out / "versions.txt").write_text("\n".join(said), encoding="utf-8")

    def _said(self, command: list[str]) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def part(self, name: str, seconds: int, arguments: tuple[str, ...]) -> None:
        """One part within its time; what it said goes to logs.txt, and all results so far to all.json."""
        command = [sys.executable, *(word.replace("{results}", str(self.results)) for word in arguments)]
        log, started = self.work / f"log_{name}", time.monotonic()
        print(f"=== {name}", flush=True)
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                ended = str(process.wait(seconds))
            except subprocess.TimeoutExpired:
                ended = f"over after {seconds} s"
                os.killpg(process.pid, 9)  # with the server that it may have started
                process.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
        print(f"{text[-1500:]}\n{name}: {ended}, {time.monotonic() - started:.0f} s", flush=True)
        with open(self.out / "logs.txt", "a", encoding="utf-8") as logs:
            logs.write(f"=== {name}: {ended}\n{text[-60000:]}\n")
            for said in sorted(self.results.glob("*.log")):
                logs.write(f"--- {said.name}\n{said.read_text(encoding='utf-8', errors='replace')[-20000:]}\n")
                said.unlink()
        self.gather()

    def gather(self) -> None:
        found = {}
        for file in sorted(self.results.glob("*.json")):
            try:
                found[file.stem] = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                found[file.stem] = f"unreadable: {error}"
        (self.out / "all.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    prepared = commands.add_parser("prepare")
    prepared.add_argument("kit", type=Path)
    prepared.add_argument("--comfyui", type=Path, required=True, help="a checkout")
    prepared.add_argument("--python", default="3.12", help="the GPU machine's")
    ran = commands.add_parser("run")
    ran.add_argument("parts", choices=RUNS)
    ran.add_argument("kit", type=Path)
    ran.add_argument("--out", type=Path, required=True)
    ran.add_argument("--work", type=Path, default=Path(os.environ.get("GPU_WORK", "/tmp/antipure_gpu")))
    ran.add_argument("--cpu", action="store_true", help="for a look")
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.kit, args.comfyui, args.python)
        return
    run = Run(args.kit, args.out, args.work)
    run.unpack()
    run.versions()
    for name, (seconds, arguments) in (ON_CPU if args.cpu else RUNS)[args.parts].items():
        run.part(name, seconds, arguments)


if __name__ == "__main__":
    main()
