"""benchmarks.gpu without a GPU: what it carries, what a part costs that fails or hangs, and that it is of today."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import tarfile
import time
import warnings

import pytest
import torch
from antipure.nodes import NODE_CLASS_MAPPINGS

gpu = importlib.import_module("antipure.benchmarks.gpu")
gpu_pixel = importlib.import_module("antipure.benchmarks.gpu_pixel")
gpu_server = importlib.import_module("antipure.benchmarks.gpu_server")
speed = importlib.import_module("antipure.benchmarks.speed")


@pytest.fixture
def kit(tmp_path):
    """A kit of a checkout with a source, a tokenizer's readme, models and a server's output."""
    checkout = tmp_path / "checkout"
    for name in ("main.py", "comfyui_version.py", "comfy/sd.py", "comfy/README.md", "models/large.bin", "output/a.png"):
        file = checkout / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name, encoding="utf-8")
    (tmp_path / "kit").mkdir()
    gpu.pack(checkout, tmp_path / "kit" / "comfyui.tar.xz")
    return tmp_path / "kit"


def test_a_checkouts_source_is_packed_and_nothing_else(kit):
    with tarfile.open(kit / "comfyui.tar.xz") as tar:
        files = {info.name for info in tar if info.isfile()}
    assert files == {"main.py", "comfyui_version.py", "comfy/sd.py"}


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no checkout"):
        gpu.prepare(tmp_path / "kit", tmp_path, "3.12")
    assert not (tmp_path / "kit").exists()


def test_a_part_that_fails_or_hangs_costs_its_own_time_only(kit, tmp_path):
    run = gpu.Run(kit, tmp_path / "out", tmp_path / "work")
    run.unpack()
    run.unpack()  # a second call on a warm machine
    assert (tmp_path / "work" / "comfyui" / "comfy" / "sd.py").is_file()
    assert (tmp_path / "work" / "comfyui" / "custom_nodes").is_dir()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    good = "import json, sys; json.dump({'a': 1}, open(sys.argv[1], 'w')); print('said')"
    bad = "import sys; open(sys.argv[1], 'w').write('{'); sys.exit('broken')"
    started = time.monotonic()
    run.part("good", 30, ("-c", good, "{results}/good.json"))
    run.part("bad", 30, ("-c", bad, "{results}/bad.json"))
    run.part("hanging", 2, ("-c", child))
    assert time.monotonic() - started < 30
    found = json.loads((tmp_path / "out" / "all.json").read_text())
    assert found["good"] == {"a": 1}
    assert found["bad"].startswith("unreadable")
    logs = (tmp_path / "out" / "logs.txt").read_text()
    assert "=== good: 0\nsaid" in logs
    assert "=== bad: 1\nbroken" in logs
    assert "=== hanging: over after 2 s" in logs


def after(flag: str, arguments: list[str]) -> list[str]:
    """The words that follow a flag, up to the next one."""
    words = arguments[arguments.index(flag) + 1 :] if flag in arguments else []
    return list(itertools.takewhile(lambda word: not word.startswith("--"), words))


def test_every_call_fits_ten_minutes_and_names_parts_that_there_are():
    checks = {name.removeprefix("check_") for name in vars(gpu_pixel.Checks) if name.startswith("check_")}
    known = {"benchmarks.speed": set(speed.PARTS), "benchmarks.gpu_pixel": checks, "benchmarks.gpu_server": set()}
    for parts in (*gpu.RUNS.values(), *gpu.ON_CPU.values()):
        assert sum(seconds for seconds, _ in parts.values()) <= 600 or parts in gpu.ON_CPU.values()
        for _, (_, name, *arguments) in parts.values():
            assert set(after("--only", arguments)) <= known.get(name, set())
            assert all(hasattr(gpu_server.Server, word.split(":")[0]) for word in after("--walk", arguments))


# Every goal for a GPU: the run and the part of it that measure it, and what of that part does.
GOALS = [
    ("presets and GrIDPure equal to the CPU", "pixel", "checks", "parity"),
    ("LoRA training equal to the CPU", "pixel", "checks", "training"),
    ("customization equal to the CPU", "pixel", "checks", "customization"),
    ("customization over Denoiser from Model", "sd15", "sd15", "loop:512"),
    ("SD 1.5 512² within 6 GB", "sd15_memory", "sd15_6_gb", "probe:512"),
    ("SD 1.5 1024² within 8 GB", "sd15_memory", "sd15_8_gb", "probe:1024"),
    ("SDXL 1024² within 16 GB", "sdxl", "sdxl_16_gb", "probe:1024"),
    ("a step over the bare network and VAE", "sd15", "sd15", "probe:512"),
    ("presets and GrIDPure over the floor", "pixel", "floor", "floor"),
    ("over plain eager code and the released order", "speed", "plain", "plain"),
    ("kernels over copy bandwidth, PFG over PatchDCT", "pixel", "floor", "kernels"),
    ("gradient under forced eviction in fp32", "sd15", "sd15_fp32", "probe:512"),
    ("cancel", "sd15", "sd15", "cancel:1024:5"),
    ("sampling afterwards", "sd15", "sd15", "after:512"),
    ("the default preset at 1024², bundled", "pixel", "checks", "time"),
    ("the default preset at 1024², SD 1.5", "sd15", "sd15", "protect:1024:40"),
    ("the default preset at 1024², SDXL", "sdxl", "sdxl", "protect:1024:40"),
    ("torch.compile, CUDA graphs", "pixel", "compiled", "compiled"),
    ("same seed, same bytes", "pixel", "checks", "same_bytes"),
    ("the host waits", "pixel", "checks", "waits"),
]


@pytest.mark.parametrize(("goal", "run", "part", "what"), GOALS)
def test_every_goal_is_measured(goal, run, part, what):
    _, arguments = gpu.RUNS[run][part]
    if "benchmarks.gpu_pixel" in arguments and "--only" not in arguments:
        assert hasattr(gpu_pixel.Checks, f"check_{what}")
    else:
        assert what in (*after("--walk", list(arguments)), *after("--only", list(arguments)))
    cap = after("--cap", list(arguments))
    assert not cap or f"within {cap[0]} GB" in goal


def test_every_part_has_a_look_without_a_gpu():
    assert set(gpu.ON_CPU) == set(gpu.RUNS)


def test_the_default_preset_is_what_the_node_begins_with():
    default = NODE_CLASS_MAPPINGS["AntiPureProtect"].INPUT_TYPES()["required"]["preset"][1]["default"]
    (protect,) = [n for n in gpu_server.protecting("a.png", 1).values() if n["class_type"] == "AntiPureProtect"]
    assert protect["inputs"]["preset"] == default == gpu_pixel.DEFAULT


def test_exact_ends_as_it_began():
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    with gpu_pixel.exact():
        assert not any(flag.allow_tf32 for flag in flags)
    assert [flag.allow_tf32 for flag in flags] == before


def test_prompts_give_todays_nodes_what_they_ask_for():
    nodes = gpu_server.protecting("face.png", 3).values()
    ours = [node for node in nodes if node["class_type"].startswith("AntiPure")]
    assert len(ours) == 2
    for node in ours:
        inputs = NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        assert set(inputs["required"]) <= set(node["inputs"]) <= {*inputs["required"], *inputs.get("optional", {})}


def test_checks_of_the_pixel_denoiser_run(tmp_path, monkeypatch):
    out = tmp_path / "pixel.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu_pixel", str(out), "--device", "cpu", "--small", "--only", "training", "customization"]
    )
    gpu_pixel.main()
    found = json.loads(out.read_text())
    assert found["training"]["relative"] == found["customization"]["relative, TF32 off"] == 0


def test_waits_are_counted_as_torch_tells_them(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)

    ((place, count),) = gpu_pixel.waited(work).items()
    assert place.startswith("test_gpu.py:")
    assert count == 3
    assert modes == ["warn", "default"]
