"""The same work by one process, by several, and by a cluster: the same bytes, and nobody's death loses anything."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from antipure.cli.main import build_parser
from antipure.cli.portfolio import processes
from antipure.cli.portfolio.plan import Job
from antipure.cli.portfolio.run import _threads
from antipure.cli.portfolio.work import Outcome, Setup, Worker

from .conftest import by_picture, saved

SETTINGS = {
    "preset": "random",
    "levels": 4,
    "visibility": "full",
    "steps": 1,
    "denoiser": "bundled",
    "precision": "fp32",
    "seed": 0,
    "vaes": [],
}
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed here (pip install 'antipure[ray]')"
)
needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")


def jobs_of(photos: Path) -> list[Job]:
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.*"))]
    return [Job("protect", name, str(photos / name), (), Path(name).stem) for name in names]


def run(setup: Setup, jobs: list[Job], workers: int) -> list[Outcome]:
    return list(processes.run_processes(setup, jobs, workers, lambda picture, share: None))


def test_processes_give_the_bytes_of_one(photos, protect, tmp_path):
    (photos / "bad.png").write_bytes(b"no picture")
    assert protect(photos, "--out", tmp_path / "one", "--threads", 1)[0] == 1
    assert protect(photos, "--out", tmp_path / "two", "--threads", 1, "--workers", 2)[0] == 1
    assert saved(tmp_path / "one") == saved(tmp_path / "two")
    one, two = by_picture(tmp_path / "one"), by_picture(tmp_path / "two")
    assert one.keys() == two.keys()
    changing = ("seconds", "finished", "made_on")
    for name in one:
        assert {k: v for k, v in one[name].items() if k not in changing} == {
            k: v for k, v in two[name].items() if k not in changing
        }
    assert {line["made_on"].get("worker") for line in two.values()}.isdisjoint(
        line["made_on"].get("worker") for line in one.values()
    )


class Dying(Worker):
    """A worker that one picture kills each time, and another one the first time."""

    def do(self, job: Job) -> Outcome:
        marker = Path(job.source).with_name("died once")
        if job.picture == "a.png" or (job.picture == "b.jpg" and not marker.exists()):
            if job.picture == "b.jpg":
                marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(job)


def serve_dying(pipe, setup) -> None:
    """What a worker's process runs: there, everything was imported anew."""
    processes.Worker = Dying
    SERVE(pipe, setup)


SERVE = processes._serve


@needs_kill
def test_a_worker_that_dies_costs_no_other_picture(photos, monkeypatch):
    monkeypatch.setattr(processes, "_serve", serve_dying)
    outcomes = run(Setup("protect", SETTINGS, 1), jobs_of(photos), 2)
    assert sorted(outcome.job.picture for outcome in outcomes) == ["a.png", "b.jpg", "deep/d.bmp", "deep/er/c.webp"]
    (failed,) = (outcome for outcome in outcomes if outcome.error)
    assert failed.job.picture == "a.png"
    assert "died 2 times" in failed.error
    assert "SIGKILL" in failed.error
    assert "\n" not in failed.error


def test_models_that_cannot_be_loaded_end_the_run(photos, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    settings = SETTINGS | {"denoiser": str(tmp_path / "model.safetensors")}
    outcomes = run(Setup("protect", settings, 1), jobs_of(photos), 1)
    assert [bool(outcome.fatal) for outcome in outcomes] == [True]
    assert "model.safetensors" in outcomes[0].fatal


@pytest.mark.parametrize(
    ("arguments", "threads"), [([], None), (["--workers", "2"], 2), (["--workers", "2", "--threads", "3"], 3)]
)
def test_workers_share_the_threads_unless_told(arguments, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert _threads(build_parser().parse_args(["protect", "a.png", *arguments])) == threads


def test_each_worker_sees_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    seen = []
    for number in range(3):
        with processes._own_gpu(number):
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["4", "7", "4"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_nothing_is_left_of_pictures_and_models_load_once(photos, monkeypatch):
    from antipure.nodes.denoisers import LoadDenoiser

    loaded, load = [], LoadDenoiser.load
    monkeypatch.setattr(LoadDenoiser, "load", lambda self, *a, **k: loaded.append(1) or load(self, *a, **k))
    worker = Worker(Setup("protect", SETTINGS, 1))
    assert worker.ready() is None
    for job in jobs_of(photos):
        assert worker.do(job).error is None
        kept = [value for outputs, _ in worker._executor._cache.values() for value in outputs]
        assert not any(isinstance(value, torch.Tensor) for value in kept)
        assert not worker._executor._sources
    assert loaded == [1]


def test_without_ray_there_is_a_sentence(photos, protect, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, complaints = protect(photos, "--engine", "ray", "--out", tmp_path / "out")
    assert status == 2
    assert "pip install 'antipure[ray]'" in complaints
    assert not saved(tmp_path / "out")


@needs_ray
def test_a_ray_cluster_gives_the_bytes_of_one_process(photos, protect, tmp_path):
    """Small; `python -m benchmarks.fleet_cluster` has the kills."""
    (photos / "bad.png").write_bytes(b"no picture")
    assert protect(photos, "--out", tmp_path / "one", "--threads", 1)[0] == 1
    arguments = ["--preset", "random", "--levels", "4", "--threads", "1", "--engine", "ray", "--workers", "2"]
    command = [sys.executable, "-m", "antipure.cli.main", "protect", str(photos), "--out", str(tmp_path / "two")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert saved(tmp_path / "one") == saved(tmp_path / "two")
    assert len(by_picture(tmp_path / "two")) == 5


@needs_ray
def test_a_cluster_that_is_not_there_is_a_sentence(photos, protect, tmp_path):
    status, _, complaints = protect(photos, "--engine", "ray", "--address", "127.0.0.1:1", "--out", tmp_path / "out")
    assert status == 2
    assert "There is no Ray cluster at 127.0.0.1:1" in complaints


def test_pictures_at_addresses(photos, protect, tmp_path):
    """Any storage that fsspec knows; its file system in memory stands for one far away."""
    fsspec = pytest.importorskip("fsspec")
    far = fsspec.filesystem("memory")
    for path in photos.rglob("*"):
        if path.is_file():
            far.pipe_file(f"/photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    try:
        manifest = tmp_path / "manifest.jsonl"
        arguments = ["memory://photos", "--out", "memory://out", "--manifest", manifest]
        status, _, complaints = protect(*arguments)
        assert (status, complaints) == (0, "")
        assert protect(photos, "--out", tmp_path / "near")[0] == 0
        near = saved(tmp_path / "near")
        assert {name: far.cat_file(f"/out/{name}") for name in near} == near
        assert far.cat_file("/out/antipure_manifest.jsonl") == manifest.read_bytes()
        status, told, _ = protect(*arguments)
        assert status == 0
        assert "finished before | 4" in " ".join(told.split())
        far.pipe_file("/photos/bad.png", b"no picture")
        status, _, complaints = protect(*arguments)
        assert status == 1
        assert "memory://" in complaints
    finally:
        far.rm("/photos", recursive=True)
        far.rm("/out", recursive=True)


def test_addresses_without_fsspec_are_a_sentence(protect, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    status, _, complaints = protect("s3://bucket/photos", "--out", tmp_path / "out")
    assert status == 2
    assert "fsspec" in complaints


def test_unexpected_errors_are_one_pictures_own(photos, protect, tmp_path, monkeypatch):
    run = Worker._run

    def fails(self, picture, others, outcome):
        if picture.name == "a.png":
            raise ZeroDivisionError("division by zero\nin two lines")
        run(self, picture, others, outcome)

    monkeypatch.setattr(Worker, "_run", fails)
    status, _, complaints = protect(photos, "--out", tmp_path / "out")
    assert status == 1
    assert complaints.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in by_picture(tmp_path / "out")["a.png"]["error"]
    assert len(saved(tmp_path / "out")) == 3
