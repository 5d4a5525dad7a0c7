"""`antipure fetch-models` against a server of the test's own: checked, atomic, and only when asked."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from antipure.cli import fetch_models
from antipure.cli.fetch_models import listing
from antipure.cli.main import main
from antipure.cli.model_registry import MODELS, Model
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.encoders import file_encoder
from antipure.methods.metrics.faces import DETECTORS, RECOGNISERS
from antipure.methods.metrics.lpips import AlexNet
from antipure.nodes import model_folders

CONTENT = bytes(range(256)) * 12_000  # three blocks
PACK = {"buffalo_l/det_10g.onnx": b"detector" * 1000, "buffalo_l/w600k_r50.onnx": b"faces", "1k3d68.onnx": b"unused"}
HALVES = {"encoder": b"encoder" * 1000, "decoder": b"decoder" * 900}


def archive(members: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return written.getvalue()


@pytest.fixture
def server():
    """Serves the bytes in `content`; a number is a status, and a path in `broken` ends half-way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            found = self.server.content.get(self.path, 404)
            if isinstance(found, int):
                self.send_error(found)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found[: len(found) // 2] if self.path in self.server.broken else found)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.broken, server.asked = {"/m/tiny.pth": CONTENT, "/m/pack.zip": archive(PACK)}, set(), []
    server.content |= {f"/m/half_{name}.pth": content for name, content in HALVES.items()}
    server.url = f"http://127.0.0.1:{server.server_port}/m/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(name: str, models: Path, registry: dict[str, Model], accept_licence: bool = False) -> list[Path]:
    return fetch_models.fetch(name, models, accept_licence=accept_licence, registry=registry)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def registry(server) -> dict[str, Model]:
    tiny = Model(server.url + "tiny.pth", sha256(CONTENT), len(CONTENT), "antipure_encoders", "free", "tests")
    zipped = server.content["/m/pack.zip"]
    members = ("det_10g.onnx", "w600k_r50.onnx")
    pack = Model(
        server.url + "pack.zip",
        sha256(zipped),
        len(zipped),
        "insightface/models/pack",
        "closed",
        "faces",
        members,
        True,
    )
    halves = [
        Model(f"{server.url}half_{name}.pth", sha256(content), 10**6, "vae_approx", "free", "tests")
        for name, content in HALVES.items()
    ]
    return {"tiny": tiny, "pack": pack, "pair": replace(halves[0], others=(halves[1],))}


def lying_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_comes_whole_once_and_is_kept(server, registry, tmp_path):
    files = fetch("tiny", tmp_path, registry=registry)
    assert files == [tmp_path / "antipure_encoders" / "tiny.pth"]
    assert files[0].read_bytes() == CONTENT
    assert lying_in(tmp_path) == ["antipure_encoders", "antipure_encoders/tiny.pth"]
    assert fetch("tiny", tmp_path, registry=registry) == files
    assert server.asked == ["/m/tiny.pth"], "not asked for again"


def test_a_pack_needs_its_licence_and_gives_its_members_only(server, registry, tmp_path):
    with pytest.raises(AntiPureError, match="licence of pack is closed; add --accept-licence"):
        fetch("pack", tmp_path, registry=registry)
    assert server.asked == []
    assert lying_in(tmp_path) == []
    files = fetch("pack", tmp_path, registry=registry, accept_licence=True)
    assert [path.read_bytes() for path in files] == list(PACK.values())[:2]
    assert len(lying_in(tmp_path / "insightface/models/pack")) == 2


def test_a_model_of_several_files_comes_file_by_file(server, registry, tmp_path):
    server.broken.add("/m/half_decoder.pth")
    with pytest.raises(AntiPureError, match="half_decoder.pth came broken off"):
        fetch("pair", tmp_path, registry=registry)
    assert lying_in(tmp_path) == ["vae_approx", "vae_approx/half_encoder.pth"], "what came whole stays"
    assert registry["pair"].state(tmp_path) == "absent"
    server.broken.clear()
    files = fetch("pair", tmp_path, registry=registry)
    assert [path.name for path in files] == ["half_encoder.pth", "half_decoder.pth"]
    assert [path.read_bytes() for path in files] == list(HALVES.values())
    assert registry["pair"].state(tmp_path) == "present"
    files[1].write_bytes(HALVES["encoder"])
    assert registry["pair"].state(tmp_path) == "damaged"
    fetch("pair", tmp_path, registry=registry)
    assert files[1].read_bytes() == HALVES["decoder"]
    assert [path.rpartition("_")[2] for path in server.asked] == ["encoder.pth", *["decoder.pth"] * 3]


def fails_writing(error: BaseException):
    """A stand-in for the progress bar, which is told of every block that is written."""

    class Bar:
        def __init__(self, **settings):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, _):
            raise error

    return Bar


FAILURES = {
    "HTTP status 404": lambda s, r, m: s.content.clear(),
    "HTTP status 503": lambda s, r, m: s.content.update({"/m/tiny.pth": 503, "/m/pack.zip": 503}),
    "broken off or changed": lambda s, r, m: s.broken.update(s.content),
    "sha256 is not.*thrown away": lambda s, r, m: s.content.update(
        {key: value[:-1] + b"!" for key, value in s.content.items()}
    ),
    "check the network": lambda s, r, m: r.update(
        {key: replace(value, url="http://127.0.0.1:9/m/x.pth") for key, value in r.items()}
    ),
    "MB free and": lambda s, r, m: r.update({key: replace(value, size=10**18) for key, value in r.items()}),
    "No space left on device.; make room": lambda s, r, m: m.setattr(
        fetch_models, "tqdm", fails_writing(OSError(errno.ENOSPC, "No space left on device"))
    ),
}


@pytest.mark.parametrize("name", ["tiny", "pack"])
@pytest.mark.parametrize("sentence", FAILURES)
def test_nothing_is_left_when_it_fails(server, registry, tmp_path, monkeypatch, name, sentence):
    FAILURES[sentence](server, registry, monkeypatch)
    with pytest.raises(AntiPureError, match=sentence) as caught:
        fetch(name, tmp_path, registry=registry, accept_licence=True)
    assert "\n" not in str(caught.value)
    assert lying_in(tmp_path) == []


@pytest.mark.parametrize("members", [None, {"det_10g.onnx": b"alone"}], ids=["no archive", "a member missing"])
def test_a_wrong_archive_leaves_nothing(server, registry, tmp_path, members):
    content = archive(members) if members else b"no archive"
    server.content["/m/pack.zip"] = content
    registry["pack"] = replace(registry["pack"], sha256=sha256(content))
    with pytest.raises(AntiPureError, match="thrown away"):
        fetch("pack", tmp_path, registry=registry, accept_licence=True)
    assert lying_in(tmp_path) == []


def test_what_was_there_stays_when_it_fails(server, registry, tmp_path):
    folder = tmp_path / "insightface/models/pack"
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").write_bytes(b"mine")
    server.content.clear()
    with pytest.raises(AntiPureError, match="404"):
        fetch("pack", tmp_path, registry=registry, accept_licence=True)
    assert lying_in(folder) == ["det_10g.onnx"]
    assert (folder / "det_10g.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["tiny", "pack"])
def test_ctrl_c_leaves_nothing(server, registry, tmp_path, monkeypatch, capsys, name):
    seen = []

    class Bar(fails_writing(KeyboardInterrupt())):
        def update(self, size):
            seen.append(lying_in(tmp_path))
            super().update(size)

    monkeypatch.setattr(fetch_models, "tqdm", Bar)
    monkeypatch.setattr(fetch_models, "MODELS", registry)
    assert main(["fetch-models", name, "--models", str(tmp_path), "--accept-licence"]) == 130
    assert re.search(r"\.partial$", seen[-1][-1]), "it was being written"
    assert lying_in(tmp_path) == []
    assert "cancelled" in capsys.readouterr().err


def test_without_a_name_everything_is_listed(tmp_path, capsys, server, monkeypatch):
    whole = replace(MODELS["resnet50"], size=len(CONTENT), sha256=sha256(CONTENT))
    monkeypatch.setitem(MODELS, "resnet50", whole)
    states = {"resnet50": "present", "alexnet": "damaged", "buffalo_l": "damaged"}
    for name in states:
        for path in MODELS[name].files(tmp_path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENT if name == "resnet50" else b"")
    assert main(["fetch-models", "--models", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.strip() == listing(tmp_path)
    for name, model in MODELS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f" {states.get(name, 'absent')} " in row
        assert f"{model.total_size / 1e6:.0f} MB" in row
        assert model.purpose in row
        assert model.licence in text
    assert "needs --accept-licence" in text
    assert server.asked == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "no model 'nothing' to fetch; there are alexnet, inception, resnet50, buffalo_l"),
        (["alexnet", "--models", "/no/such/folder"], "no folder /no/such/folder"),
        (["buffalo_l"], "non-commercial research only"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch-models", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert lying_in(tmp_path) == []


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c[:-1] + b"!", lambda c: c + b"!", lambda c: b""])
def test_a_damaged_file_is_not_present_and_is_fetched_again(server, registry, tmp_path, change):
    (file,) = fetch("tiny", tmp_path, registry=registry)
    file.write_bytes(change(CONTENT))
    assert registry["tiny"].state(tmp_path) == "damaged"
    fetch("tiny", tmp_path, registry=registry)
    assert file.read_bytes() == CONTENT
    assert registry["tiny"].state(tmp_path) == "present"
    assert server.asked == ["/m/tiny.pth"] * 2


@pytest.mark.parametrize("name", ["tiny", "pack"])
def test_no_more_is_taken_than_the_known_size(server, registry, tmp_path, monkeypatch, name):
    sizes = []

    class Bar(fails_writing(None)):
        def update(self, size):
            sizes.append(size)

    monkeypatch.setattr(fetch_models, "tqdm", Bar)
    path = registry[name].url.removeprefix(server.url)
    server.content[f"/m/{path}"] += bytes(2**23)
    with pytest.raises(AntiPureError, match="broken off or changed"):
        fetch(name, tmp_path, registry=registry, accept_licence=True)
    assert sum(sizes) == registry[name].size + 1
    assert lying_in(tmp_path) == []


def test_what_killed_downloads_left_is_removed_and_what_is_being_written_stays(server, registry, tmp_path):
    (tiny, pack), now = (tmp_path / registry[name].folder for name in ("tiny", "pack")), time.time()
    ages = {
        tiny / "tiny.pth.0123.partial": 2,
        tiny / "tiny.pth.4567.partial": 0,
        tiny / "other.pth.0123.partial": 2,
        tiny / "mine.safetensors": 2,
        pack / ".antipure-fetch-old/pack.zip.89.partial": 2,
        pack / ".antipure-fetch-new/pack.zip.89.partial": 0,
    }
    for path, hours in ages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        for each in (path, path.parent):
            os.utime(each, (now - 3600 * hours, now - 3600 * hours))
    for name in registry:
        fetch(name, tmp_path, registry=registry, accept_licence=True)
    assert lying_in(tiny) == ["mine.safetensors", "other.pth.0123.partial", "tiny.pth", "tiny.pth.4567.partial"]
    assert lying_in(pack) == [
        ".antipure-fetch-new",
        ".antipure-fetch-new/pack.zip.89.partial",
        "det_10g.onnx",
        "w600k_r50.onnx",
    ]


def test_the_registry_fits_the_loaders():
    for name, model in MODELS.items():
        for each in model.downloads:
            assert each.url.startswith("https://"), name
            assert re.fullmatch(r"[0-9a-f]{64}", each.sha256), name
        if model.folder == "vae_approx":
            assert [each.file_name for each in model.downloads] == [f"{name}_encoder.pth", f"{name}_decoder.pth"]
            assert all(re.search(r"/[0-9a-f]{40}/", each.url) for each in model.downloads), "a pinned commit"
        elif name == "adm256":
            assert model.folder == model_folders.KINDS["denoisers"].folder
            assert Path(model.file_name).suffix in model_folders.KINDS["denoisers"].suffixes
        elif model.members:
            files = [Path(member) for member in model.members]
            assert model.restricted, "insightface's models are not free"
            for patterns in (DETECTORS, RECOGNISERS):
                assert any(file.match(pattern) for file in files for pattern in patterns)
            assert model.folder == f"{model_folders.KINDS['faces'].folder}/models/{name}"
        else:
            assert model.file_name.endswith(f"-{model.sha256[:8]}.pth"), "torchvision's way of naming"
            assert model.folder == model_folders.KINDS["encoders"].folder
            assert Path(model.file_name).suffix in model_folders.KINDS["encoders"].suffixes


def test_a_fetched_file_is_found_by_name_and_loaded(server, registry, tmp_path, monkeypatch):
    """Outside ComfyUI the default is ./models, where the command line's nodes look, too."""
    torch.manual_seed(0)
    written = io.BytesIO()
    torch.save(AlexNet().state_dict(), written)
    server.content["/m/tiny.pth"] = written.getvalue()
    content = written.getvalue()
    registry["tiny"] = replace(registry["tiny"], sha256=sha256(content), size=len(content))
    monkeypatch.chdir(tmp_path)
    assert model_folders.models_folder() == Path("models")
    fetch("tiny", model_folders.models_folder(), registry=registry)
    assert model_folders.list_models("encoders") == ["tiny.pth"]
    assert "AlexNet (tiny.pth)" in file_encoder(model_folders.find_model("encoders", "tiny.pth")).name


def test_the_models_folder_is_that_of_the_comfyui_around_the_pack(monkeypatch, tmp_path):
    monkeypatch.setattr(model_folders, "__file__", str(tmp_path / "custom_nodes/antipure/nodes/model_folders.py"))
    assert model_folders.models_folder() == tmp_path / "models"
