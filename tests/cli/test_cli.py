"""The command line, run as users run it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.cli.core_nodes import LoadImage
from antipure.cli.executor import NODES, Executor, execution_order
from antipure.cli.graph import WORKFLOWS, read_workflow, set_inputs
from antipure.cli.main import main
from antipure.cli.report import REPORT, SHEET, write_report
from antipure.cli.result import Result
from antipure.methods import files
from antipure.methods.diffusion.taesd import TinyAutoencoder
from antipure.methods.errors import AntiPureError
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FAST = {
    "protect": ["3.steps=2"],
    "protect_my_picture": ["3.steps=2"],
    "purify": ["3.iterations=1", "3.timestep=2"],
    "measure": [],
    "protect_and_purify": ["3.steps=2", "5.iterations=1", "6.iterations=1", "5.timestep=2", "6.timestep=2"],
    "robustness_report": [
        "4.steps=1",
        "5.steps=1",
        "6.purifiers=gridpure1@2, held_out:gridpure1@2, jpeg75",
        "6.curve_iterations=2",
    ],
    "lora_patch_defensive": ["2.count=2", "3.epochs=1", "3.batch=2", "6.count=2"],
    "lora_patch_evaluation": ["2.count=1", "3.edits=glasses", "5.count=1", "6.edits=glasses"],
    "vae_protect": ["7.steps=2"],
}


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.open(ROOT / "bundled" / "astronaut_face.png").crop((20, 20, 90, 95)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def runs_in_process(name: str) -> bool:
    return {node["class_type"] for node in read_workflow(name).values()} <= NODES.keys()


def vae_file(folder: Path) -> Path:
    """One half of a TAESD with random weights; the other lies beside it."""
    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 8)
    for half in ("encoder", "decoder"):
        torch.save(getattr(vae, half).state_dict(), folder / f"tiny_{half}.pth")
    return folder / "tiny_encoder.pth"


@pytest.mark.parametrize("name", sorted(filter(runs_in_process, (path.stem for path in WORKFLOWS.glob("*.json")))))
def test_every_shipped_workflow_runs(name, photo, tmp_path):
    files = {"LoadImage": f"image={photo}", "VAELoader": f"vae_name={vae_file(tmp_path)}"}
    kinds = {node_id: node["class_type"] for node_id, node in read_workflow(name).items()}
    given = [f"{node_id}.{files[kind]}" for node_id, kind in kinds.items() if kind in files]
    prompt = set_inputs(read_workflow(name), [*FAST[name], *given])
    result = Executor(tmp_path / "out").run(prompt)
    savers = {i for i, n in prompt.items() if n["class_type"] in ("SaveImage", "AntiPureSave")}
    assert {i for i, files in result.files.items() if files} == savers
    assert all(Image.open(f).size[0] >= 64 for files in result.files.values() for f in files)


def test_protect_writes_a_picture_within_its_budget(photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["protect", str(photo), "--levels", "3", "--steps", "2", "--out", str(out)]) == 0
    (file,) = out.rglob("*.png")
    assert str(file) in capsys.readouterr().out
    assert np.abs(pixels(file) - pixels(photo)).max() == 3


def test_protect_with_less_that_shows(photo, tmp_path, capsys):
    out, energy = tmp_path / "out", []
    for name in ("full", "gentle"):
        fast = ["--preset", "random", "--visibility", name, "--out", str(out / name)]
        assert main(["protect", str(photo), *fast]) == 0
        energy.append(np.square(pixels(next((out / name).rglob("*.png"))) - pixels(photo)).mean())
    assert 0 < energy[1] < 0.6 * energy[0]
    assert main(["protect", str(photo), "--visibility", "faint", "--out", str(out)]) == 2
    assert "faint" in capsys.readouterr().err


def test_purify_then_measure(photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["purify", str(photo), "--iterations", "1", "--timestep", "3", "--out", str(out)]) == 0
    (file,) = out.rglob("*.png")
    capsys.readouterr()
    assert main(["measure", str(photo), str(file), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["levels"] == np.abs(pixels(file) - pixels(photo)).max()
    assert 25 < values["psnr"] < 60
    assert main(["measure", str(photo), str(photo), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr"] is None
    assert main(["measure", str(photo), str(file)]) == 0
    assert "structural distortion" in capsys.readouterr().out


def test_measure_through_a_vae(photo, tmp_path, capsys, monkeypatch):
    """By a path, and by the name under which ComfyUI's Load VAE lists TAESD's files."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 8)
    folder = tmp_path / "models" / "vae_approx"
    folder.mkdir(parents=True)
    for half in ("encoder", "decoder"):
        torch.save(getattr(vae, half).state_dict(), folder / f"taesd_{half}.pth")
    with Image.open(photo) as image:
        image.convert("RGB").point(lambda value: 255 - value).save("other.png")
    found = []
    for name in ("taesd", str(folder / "taesd_encoder.pth")):
        assert main(["measure", str(photo), "other.png", "--vae", name, "--view", "blur1", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["latent_shift"] > 0
    assert found[0]["view"] == "blur1"
    assert {"psnr", "ssim"} < found[0].keys()
    assert main(["measure", str(photo), "other.png", "--vae", "taesd"]) == 0
    assert "latent shift" in capsys.readouterr().out
    for arguments, sentence in {
        ("--vae", "nothing.pth"): "There is no VAE at nothing.pth",
        ("--vae", "taesd", "--view", "sharpen"): "'sharpen' is no transform",
    }.items():
        assert main(["measure", str(photo), "other.png", *arguments]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_protect_against_vaes(photo, tmp_path, capsys):
    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 8)
    files = []
    for name in ("one", "two"):
        for half in ("encoder", "decoder"):
            torch.save(getattr(vae, half).state_dict(), tmp_path / f"{name}_{half}.pth")
        files += ["--vae", str(tmp_path / f"{name}_encoder.pth")]

    def run(*arguments: str) -> tuple[int, str]:
        fast = ["--steps", "2", "--preset", "robust", "--out", str(tmp_path / "out")]
        status = main(["protect", str(photo), *fast, *arguments])
        output = capsys.readouterr()
        return status, output.out + output.err

    for arguments in (("--denoiser", "none", *files), tuple(files[:2]), ()):
        assert run(*arguments)[0] == 0
    made = [path.read_bytes() for path in (tmp_path / "out").rglob("*.png")]
    assert len(set(made)) == 3, "VAEs alone, both, and the denoiser alone"
    for arguments, sentence in {
        ("--denoiser", "none"): "give --vae FILE",
        tuple(files * 3): "--vae is given 6 times; at most 4",
        ("--denoiser", "none", *files, "--preset", "strong"): "VAEs alone are wired",
        ("--vae", "nothing.pth"): "There is no VAE at nothing.pth",
    }.items():
        status, shown = run(*arguments)
        assert status == 2
        assert sentence in shown


def test_measuring_through_a_view_takes_pictures_of_different_sizes(photo, tmp_path, capsys):
    large = tmp_path / "large.png"
    with Image.open(photo) as picture:
        size = picture.size
        picture.resize((2 * size[0], 2 * size[1]), Image.NEAREST).save(large)
    assert main(["measure", str(photo), str(large), "--view", "shrink0.5", "--json"]) == 2
    assert "differ in size" in capsys.readouterr().err
    assert main(["measure", str(photo), str(large), "--view", "long32", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["view"] == "long32"
    assert values["psnr"] is None or values["psnr"] > 25
    assert main(["measure", str(photo), str(large), "--view", "wash"]) == 2
    assert "'wash' is no transform" in capsys.readouterr().err


def test_run_sets_inputs_by_id_title_and_class(photo, tmp_path, capsys):
    command = ["run", "protect", "--set", f"LoadImage.image={photo}", "--set", "Protect.steps=1"]
    command += ["--set", "3.preset=random", "--set", "4.filename_prefix=a/b", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert (tmp_path / "out" / "a" / "b_00001_.png").is_file()
    assert main(command) == 0
    assert (tmp_path / "out" / "a" / "b_00002_.png").is_file()


def test_demo_prints_the_whole_table(tmp_path, capsys, photo):
    arguments = ["demo", "--steps", "1", "--iterations", "1", "--out", str(tmp_path), "--picture", str(photo)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for row in ("none (clean)", "random", "shift", "blocks", "smooth", "paper", "robust", "robust, spectrum-matched"):
        assert f" {row} " in printed
    assert (tmp_path / "robust_sheet_00001_.png").is_file()
    assert "robust_sheet_00001_.png" in printed


def _bad_pickle(path: Path) -> None:
    class Code:
        def __reduce__(self):
            return (os.system, (f"touch {path}.ran",))

    torch.save({"weights": Code()}, path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["protect", "missing.png"], "no picture"),
        (["protect", "text.txt"], "not a picture"),
        (["protect", "cut.png"], "truncated"),
        (["protect", "photo.png", "--levels", "0"], "levels"),
        (["protect", "photo.png", "--levels", "-4"], "levels"),
        (["protect", "photo.png", "--steps", "0"], "steps"),
        (["protect", "photo.png", "--preset", "best"], "preset"),
        (["protect", "photo.png", "--denoiser", "text.pt"], "text.pt"),
        (["protect", "photo.png", "--denoiser", "code.pt"], "code"),
        (["protect", "photo.png", "--denoiser", "cut.safetensors"], "complete"),
        (["protect", "photo.png", "--denoiser", "folder"], "folder"),
        (["purify", "photo.png", "--timestep", "5000"], "timestep"),
        (["purify", "photo.png", "--gamma", "1"], "gamma"),
        (["measure", "photo.png", "small.png"], "differ in size"),
        (["run", "nothing.json"], "no workflow"),
        (["run", "text.txt"], "workflow"),
        (["run", "ui.json"], "API format"),
        (["run", "foreign.json"], "KSampler"),
        (["run", "protect", "--set", "Protect.levles=4"], "levles"),
        (["run", "protect", "--set", "Protect.image=4"], "wired"),
        (["run", "protect", "--set", "nonsense"], "NODE.INPUT=VALUE"),
    ],
)
def test_mistakes_get_one_sentence_and_write_nothing(arguments, sentence, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("hello")
    Path("text.pt").write_text("hello")
    Path("cut.png").write_bytes(photo.read_bytes()[:2000])
    bundled = (ROOT / "bundled" / "denoiser.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(bundled[: len(bundled) // 2])
    Path("folder").mkdir()
    _bad_pickle(Path("code.pt"))
    Image.new("RGB", (8, 8)).save("small.png")
    Path("ui.json").write_text(json.dumps({"nodes": [], "links": []}))
    foreign = read_workflow("protect")
    foreign["9"] = {"class_type": "KSampler", "inputs": {"latent_image": ["3", 0]}}
    Path("foreign.json").write_text(json.dumps(foreign))
    assert main([*arguments, *(["--out", "out"] if arguments[0] != "measure" else [])]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("antipure: ")
    assert sentence in error
    assert "\n" not in error
    assert not Path("out").exists() or not list(Path("out").rglob("*"))
    assert not Path("code.pt.ran").exists()


def test_a_full_disk_leaves_nothing_behind(photo, tmp_path, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    arguments = ["protect", str(photo), "--preset", "shift", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "No space left" in capsys.readouterr().err
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_processes_that_save_at_once_overwrite_nothing(tmp_path):
    code = (
        "import sys, time, torch; from pathlib import Path; from antipure.cli.core_nodes import SaveImage\n"
        "folder, number = Path(sys.argv[1]), int(sys.argv[2])\n"
        "(folder / f'ready{number}').touch()\n"
        "while not (folder / 'go').exists(): time.sleep(0.001)\n"
        "for i in range(25):\n"
        "    SaveImage(folder).save(torch.full((1, 2, 2, 3), (number * 25 + i) / 255), 'run/a')"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)]) for i in range(3)]
    while len(list(tmp_path.glob("ready*"))) < 3 and all(run.poll() is None for run in runs):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [run.wait() for run in runs] == [0, 0, 0]
    saved = list((tmp_path / "run").iterdir())
    assert sorted(pixels(path)[0, 0, 0] for path in saved) == list(range(75))


@pytest.mark.parametrize(
    "arguments",
    [
        ["protect", "photo.png", "--out", "file"],
        ["purify", "photo.png", "--out", "file/below"],
        ["report", "photo.png", "--out", "file"],
        ["demo", "--out", "file"],
        ["run", "protect", "--set", "1.image=photo.png", "--set", "4.filename_prefix=file/x", "--out", "."],
        ["run", "protect", "--set", "1.image=photo.png", "--set", "4.filename_prefix=../x", "--out", "out"],
        ["run", "save_patch.json", "--out", "file"],
        ["run", "protect", "--out", "file", "--server", "http://127.0.0.1:1"],
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_any_work(arguments, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    defensive = read_workflow("lora_patch_defensive")
    defensive["99"] = {
        "class_type": "AntiPureSaveLoraPatch",
        "inputs": {"patch": ["3", 0], "filename_prefix": "a", "format": "patch"},
    }
    Path("save_patch.json").write_text(json.dumps(defensive))
    monkeypatch.setattr(Executor, "_execute", lambda *_: pytest.fail("work began"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error or "leads out" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photo.png", "save_patch.json"]


def test_a_second_report_leaves_the_first_as_it_is(tmp_path):
    def result(text: str) -> Result:
        return Result(ui={REPORT: {"report": [{"name": text}], "markdown": [text]}}, files={SHEET: [Path("sheet")]})

    assert write_report(result("first"), tmp_path).splitlines()[1:] == [
        str(tmp_path / "report.json"), str(tmp_path / "report.md"), "sheet"
    ]  # fmt: skip
    (tmp_path / "report_2.md").write_text("notes")
    write_report(result("second"), tmp_path)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts == {
        "report.json": '{\n "name": "first"\n}\n', "report.md": "first", "report_2.md": "notes",
        "report_3.json": '{\n "name": "second"\n}\n', "report_3.md": "second",
    }  # fmt: skip


def test_unchanged_nodes_run_once(photo, tmp_path, monkeypatch):
    from antipure import NODE_CLASS_MAPPINGS

    calls = []
    purify = NODE_CLASS_MAPPINGS["AntiPureDiffusionPurify"]
    original = purify.purify
    monkeypatch.setattr(purify, "purify", lambda self, **k: calls.append(1) or original(self, **k))
    executor = Executor(tmp_path)
    base = set_inputs(read_workflow("protect_and_purify"), [*FAST["protect_and_purify"], f"1.image={photo}"])
    executor.run(set_inputs(base, ["3.preset=random"]))
    assert len(calls) == 2
    executor.run(set_inputs(base, ["3.preset=shift"]))
    assert len(calls) == 3, "the clean picture must not be purified again"


def test_cycles_and_broken_links_are_named():
    prompt = read_workflow("protect")
    prompt["1"]["inputs"]["image"] = ["4", 0]
    with pytest.raises(AntiPureError, match="cycle"):
        execution_order(prompt)
    prompt["1"]["inputs"]["image"] = ["99", 0]
    with pytest.raises(AntiPureError, match="99"):
        execution_order(prompt)


def test_load_image_gives_comfyuis_mask_and_orientation(tmp_path):
    rgba = np.zeros((6, 4, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[:3, :, 3] = 51
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image, mask = LoadImage().load(str(tmp_path / "a.png"))
    assert image.shape == (1, 6, 4, 3)
    assert torch.allclose(mask[0, 0], torch.full((4,), 0.8))
    assert mask[0, 5].max() == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (6, 4)).save(tmp_path / "b.jpg", exif=exif)
    image, mask = LoadImage().load(str(tmp_path / "b.jpg"))
    assert image.shape == (1, 6, 4, 3)
    assert mask.shape == (1, 64, 64)


def test_the_wheel_carries_the_bundled_data(tmp_path):
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True, capture_output=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("bundled/denoiser.safetensors", "workflows/api/protect.json", "web/docs/AntiPureProtect.md",
                   "bundled/astronaut_face.png", "bundled/toy_stargan.safetensors", "bundled/LICENSE.lpips",
                   "bundled/demo/model-4.safetensors",
                   "methods/generators/loading.py", "nodes/host.py", "__init__.py",
                   "cli/portfolio/run.py", "cli/portfolio/page.html"):  # fmt: skip
        assert f"antipure/{needed}" in names
    assert not [name for name in names if "tests" in name]
