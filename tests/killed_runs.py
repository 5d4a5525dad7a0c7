"""kill -9 at random moments: `python tests/killed_runs.py PART KILLS [SEED]`, in a process of its own.

Not collected by itself: `test_killed_runs.py` starts it. The run is forked from here, because starting Python and torch
takes longer than all the rest. Half of the kills come at a random time; half are aimed at what a time seldom hits: the
run kills itself right before one of its steps in the file system, each of them in turn.

After every kill all files that have their final names are whole; the same run in the same folder then succeeds, with
the very results of one that nobody interrupted; and what was left half-written goes away once it is old.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from antipure.benchmarks.customization import Run, measure
from antipure.benchmarks.work import Clock
from antipure.cli import executor  # noqa: F401 (what runs import late is here before they are forked)
from antipure.cli.main import main
from antipure.methods.architecture import fingerprint
from antipure.methods.customization.dreambooth_lora import CustomizationSettings
from antipure.methods.diffusion.checkpoints import BUNDLED
from antipure.methods.files import STALE, read_pickle, read_safetensors, write_file
from antipure.methods.lora_patching.save_and_load import save_patch
from antipure.methods.lora_patching.training import TrainingConfig, train_patch
from antipure.methods.pictures import from_uint8
from diffusers import UNet2DModel  # noqa: F401
from PIL import Image

PICTURE = BUNDLED.with_name("astronaut_face.png")
HIDDEN = re.compile(r"\.\d+-[0-9a-f]{32}\.part")
STEPS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir")  # audit events


def photo(folder: Path, side: int) -> Path:
    """A small picture beside the folder that a run writes to."""
    path = folder.with_name("photo.png")
    if not path.exists():
        Image.open(PICTURE).convert("RGB").crop((40, 40, 40 + side, 40 + side)).save(path)
    return path


def protect(folder: Path) -> None:
    arguments = ["protect", str(photo(folder, 32)), "--steps", "2", "--preset", "paper", "--out", str(folder)]
    assert main(arguments) == 0


def report(folder: Path) -> None:
    arguments = ["report", str(photo(folder, 32)), "--preset", "random", "--preset", "shift", "--held-out", "none"]
    arguments += ["--purifiers", "jpeg75, gridpure1@2", "--curve", "0", "--out", str(folder)]
    assert main(arguments) == 0


class Editor:
    """What the pack's generators look like to a training."""

    name, edits, size, device = "tiny", ("hair", "glasses"), 16, torch.device("cpu")

    def __init__(self):
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(5, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.network = torch.nn.Sequential(*layers)
        self.fingerprint = fingerprint(self.network)

    def edit(self, pixels, edit):
        label = torch.eye(2)[self.edits.index(edit)].view(1, 2, 1, 1).expand(len(pixels), 2, *pixels.shape[-2:])
        return torch.tanh(self.network(torch.cat([pixels, label], 1)))


def patch(folder: Path) -> None:
    faces = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    config = TrainingConfig(epochs=6, rank=2, inner_steps=2, batch=2, save_every=1, preview_every=0)
    found = train_patch(Editor(), faces, config, state_file=folder / "training.state")
    save_patch(found.patch, folder / "patch.safetensors")


def customization(folder: Path) -> None:
    import numpy as np

    settings = {
        "levels": 8, "protection_steps": 1, "samples": 4, "sampling_steps": 1, "probe_crops": 2,
        "settings": CustomizationSettings(rank=1, steps=1, batch=1), "precision": "fp32", "customize": "bundled",
        "pipeline": None, "prompt": "", "clock": Clock(Counter()),
    }  # fmt: skip
    face = from_uint8(np.asarray(Image.open(PICTURE).convert("RGB")))[..., :64, :64]
    measure(Run(folder, **settings), {"face": face}, ["clean", "smooth"], ["none", "gridpure1/1"], 1)


def portfolio(folder: Path) -> None:
    pictures = folder.with_name("pictures")
    if not pictures.exists():
        pictures.mkdir()
        for i in range(3):
            Image.open(PICTURE).convert("RGB").crop((8 * i, 0, 8 * i + 24, 24)).save(pictures / f"{i}.png")
        (pictures / "broken.png").write_bytes(b"no picture")
    assert main(["protect", str(pictures), "--preset", "random", "--out", str(folder)]) == 1


PARTS: dict[str, Callable[[Path], None]] = {
    "protect": protect, "report": report, "patch": patch, "customization": customization, "portfolio": portfolio,
}  # fmt: skip


def content(path: Path) -> object:
    """What a file holds, all of it read. Fails where it is not whole."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
        return path.read_bytes()
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)  # not its bytes: their library writes metadata in any order
        return {name: (value.dtype, value.numpy().tobytes()) for name, value in tensors.items()}, metadata
    if path.suffix == ".state":
        return len(read_pickle(path)["history"])
    if path.suffix == ".jsonl":  # every line whole, none for the same picture
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len({line["picture"] for line in lines}) == len(lines)
        changing = ("seconds", "finished", "made_on")
        for line in lines:
            line["error"] = bool(line["error"])  # its sentence names the folder
        return sorted(json.dumps({k: v for k, v in line.items() if k not in changing}) for line in lines)
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n") or path.suffix == ".json" or len(text) > 200, f"{path} is cut off"
    found = json.loads(text) if path.suffix == ".json" else text
    if isinstance(found, dict):
        found.pop("training_seconds", None)
    return found


def results(folder: Path) -> dict[str, object]:
    """Everything under a final name, whole; files that a second run numbered on must equal those of the first."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if (
            path.is_dir() or HIDDEN.fullmatch(path.name) or path.name.startswith(".antipure_")
        ):  # a run's lock and claims
            continue
        name = re.sub(r"_\d{5}_(?=\.png)|_\d+(?=\.(json|md)$)", "", str(path.relative_to(folder)))
        inside = content(path)
        assert found.setdefault(name, inside) == inside, f"{path} differs from the one before it"
    return found


def forked(work: Callable[[Path], None], folder: Path, *, delay: float | None = None, step: int | None = None) -> int:
    """Run `work` in a process that is killed after `delay` seconds or before file-system step `step`; its exit status,
    -9 for a kill. The number of steps goes to a file beside the folder."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            errors = os.open(folder.with_name("errors"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(nowhere, 1)
            os.dup2(errors, 2)
            seen = [0]

            def watch(event: str, arguments: tuple) -> None:
                if event in STEPS and any(str(a).startswith(str(folder)) for a in arguments[:2]):
                    if seen[0] == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen[0] += 1

            sys.addaudithook(watch)
            work(folder)
            folder.with_name("steps").write_text(str(seen[0]))
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole_run(work: Callable[[Path], None], folder: Path) -> None:
    status = forked(work, folder)
    assert status == 0, f"exit status {status}: {folder.with_name('errors').read_text()[-2000:]}"


def clean_up(folder: Path) -> int:
    """Leftovers of killed runs: young ones stay, old ones go when something is written beside them. How many."""
    left = [path for path in folder.rglob("*") if HIDDEN.fullmatch(path.name)]
    for path in left:
        write_file(path.with_name("beside"), b"")
        assert path.exists(), "what somebody may be writing now was removed"
    for path in left:
        os.utime(path, (0, time.time() - 2 * STALE))
    for path in left:
        write_file(path.with_name("beside"), b"")
        path.with_name("beside").unlink()
    assert not any(path.exists() for path in left), "what a killed run left is still there"
    return len(left)


def kill(name: str, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill the part's run that often. Raises `AssertionError` where something is lost; else counts what happened."""
    work, moments = PARTS[name], random.Random(seed)
    counts = Counter(kills=kills)
    with tempfile.TemporaryDirectory() as place:
        reference_folder = Path(place) / "reference" / "out"
        reference_folder.parent.mkdir()
        whole_run(work, reference_folder)  # once to warm the disk
        began = time.monotonic()
        whole_run(work, again := reference_folder.with_name("again"))
        seconds = time.monotonic() - began
        steps = int(reference_folder.with_name("steps").read_text())
        expected = results(again)
        assert results(reference_folder) == expected, "two uninterrupted runs differ"
        for number in range(kills):
            folder = Path(place) / f"{number}" / "out"
            folder.parent.mkdir()
            if number % 2:
                status = forked(work, folder, step=(number // 2) % steps)
            else:
                status = forked(work, folder, delay=moments.random() * seconds)
            assert status in (0, -signal.SIGKILL), folder.with_name("errors").read_text()[-2000:]
            before = results(folder)
            counts["killed at work" if status else "done before the kill"] += 1
            counts["files there, all whole"] += len(before)
            whole_run(work, folder)
            found = results(folder)
            different = sorted(key for key in {**found, **expected} if found.get(key) != expected.get(key))
            assert not different, f"kill {number}: the second run gives something else: {different}"
            counts["runs after it that give the same bits"] += 1
            counts["hidden leftovers, cleaned up"] += clean_up(folder)
    return {"steps in the file system": steps, **counts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(kill(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))))
