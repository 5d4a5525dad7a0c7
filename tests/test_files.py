"""methods/files.py: the one reader of weights, wrappers, and files that are made to hurt."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from antipure.methods import files
from antipure.methods.errors import AntiPureError
from antipure.methods.files import find_weights, read_json, read_safetensors, read_weights, unwrap
from safetensors.torch import save_file

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2)}
OTHER = {key: value - 5 for key, value in STATE.items()}


def prefixed(prefix: str, state: dict = STATE) -> dict:
    return {prefix + key: value for key, value in state.items()}


WRAPPED = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "DataParallel": prefixed("module."),
    "DataParallel, compiled": prefixed("_orig_mod.module."),
    "Lightning": {"state_dict": prefixed("model."), "global_step": 7},
    "averaged beside raw": {"model": OTHER, "ema": STATE, "optimizer": {"state": {}}},
    "ema with a counter": {"ema": {"decay": 0.999, "shadow": STATE}, "model": OTHER},
    "AveragedModel": {"n_averaged": torch.tensor(4), **prefixed("module.")},
    "three deep": {"state_dict": {"model": {"ema": prefixed("module.")}}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_come_off(tmp_path, kind):
    torch.save(WRAPPED[kind], tmp_path / "weights.pth")
    state, metadata = read_weights(tmp_path / "weights.pth", "weights")
    assert list(state) == list(STATE)
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)
    assert metadata == {}


def test_wrappers_come_off_safetensors_too(tmp_path):
    save_file(prefixed("module."), tmp_path / "weights.safetensors", metadata={"format": "pt"})
    state, metadata = read_weights(tmp_path / "weights.safetensors", "weights")
    assert set(state) == set(STATE)
    assert metadata == {"format": "pt"}


def test_a_prefix_that_not_all_names_share_belongs_to_the_network():
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert unwrap(state) == state


def itself() -> dict:
    nest: dict = {}
    nest["model"] = nest
    return nest


@pytest.mark.parametrize(
    "content",
    [[], {}, None, 3, torch.zeros(3), {"a": 3}, {1: torch.zeros(2)}, {"state_dict": {"epoch": 3}}, itself()]
    + [{"a": torch.eye(3).to_sparse()}, {"a": torch.empty(3, device="meta")}],
    ids=str,
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(AntiPureError, match=r"other.pt (holds no plain state dict; give cake|is no|is not)"):
        read_weights(tmp_path / "other.pt", "cake")


@pytest.mark.parametrize(
    "version", ["2.5.1", "2.5.1+cu124", "1.13.0a0+git", "0.4", "2.5.0a0+872d972e41.nv24.08", "own"]
)
def test_pickles_are_refused_by_a_torch_that_would_run_their_code(tmp_path, monkeypatch, version):
    torch.save(STATE, tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(AntiPureError, match=r"weights.pt is a pickle.*CVE-2025-32434.*2\.6 or newer.*safetensors"):
        read_weights(tmp_path / "weights.pt", "weights")


@pytest.mark.parametrize("version", ["2.6.0", "2.6.0+cpu", "2.10.0", "2.6.0a0+ecf3bae40a.nv25.01", "3.0.0.dev20270101"])
def test_pickles_are_read_by_a_torch_that_does_not(tmp_path, monkeypatch, version):
    torch.save(STATE, tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "__version__", version)
    assert set(read_weights(tmp_path / "weights.pt", "weights")[0]) == set(STATE)


def test_safetensors_are_read_by_any_torch(tmp_path, monkeypatch):
    save_file(STATE, tmp_path / "weights.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.4.0")
    assert set(read_weights(tmp_path / "weights.safetensors", "weights")[0]) == set(STATE)


def test_compressed_archives_are_refused(tmp_path):
    """A megabyte of zeros in a kilobyte; torch reads such entries without a word."""
    whole, packed = io.BytesIO(), tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(2**18)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 2**14
    assert torch.load(packed, weights_only=True)["a"].numel() == 2**18
    with pytest.raises(AntiPureError, match="bomb.pt holds compressed entries"):
        read_weights(packed, "weights")


@pytest.mark.parametrize("many", [True, False])
def test_tensors_larger_than_their_file_are_refused(tmp_path, many):
    one = torch.zeros(1000)
    state = {str(i): one for i in range(100)} if many else {"a": torch.zeros(1).expand(10**5, 10**5)}
    torch.save(state, tmp_path / "views.pt")
    with pytest.raises(AntiPureError, match="far larger than the file"):
        read_weights(tmp_path / "views.pt", "weights")


def test_tied_weights_are_read(tmp_path):
    one = torch.rand(1000)
    torch.save({"in.weight": one, "out.weight": one}, tmp_path / "tied.pt")
    assert torch.equal(read_weights(tmp_path / "tied.pt", "weights")[0]["out.weight"], one)


def test_a_safetensors_header_is_measured_before_it_is_parsed(tmp_path):
    path = tmp_path / "header.safetensors"
    size = files.HEADER_LIMIT + 1
    path.write_bytes(struct.pack("<Q", size) + b"{}".ljust(size))
    with pytest.raises(AntiPureError, match="header of 16 MB"):
        read_safetensors(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(AntiPureError, match="not a complete safetensors"):
        read_safetensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, suffix, kind):
    """Opening a pipe that nobody writes to would wait for ever."""
    path = tmp_path / f"weights{suffix}"
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes in folders")
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(AntiPureError, match="does not exist" if kind == "missing" else "is no file"):
        read_json(path) if suffix == ".json" else read_weights(path, "weights")


@pytest.mark.parametrize("text", ["{", "", "\x00", "[" * 10**5, '{"a":' * 10**5])
def test_broken_json_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(AntiPureError, match="config.json is not valid JSON"):
        read_json(tmp_path / "config.json")


def test_settings_have_a_largest_size_and_are_a_dictionary(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(" " * (files.JSON_LIMIT + 1))
    with pytest.raises(AntiPureError, match="too large for settings"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(AntiPureError, match="holds no settings"):
        read_json(path)
    path.write_bytes(b'\xff\xfe{"a": 1}')
    with pytest.raises(AntiPureError, match="is not valid JSON"):
        read_json(path)


def test_weights_are_found_in_the_order_of_their_worth(tmp_path):
    names = [
        "net.safetensors",
        "net.bin",
        "net.fp32.safetensors",
        "net.ema.bin",
        "net.fp16.safetensors",
        "net.bf16.bin",
    ]
    for name in ("net.other.safetensors", "net.txt", *names):
        (tmp_path / name).touch()
    for name in names:
        found, variant = find_weights(tmp_path, "net")
        assert [path.name for path in found] == [name]
        assert variant == (name.split(".")[1] if name.count(".") == 2 else None)
        (tmp_path / name).unlink()
    with pytest.raises(AntiPureError, match=r"has no net\.safetensors"):
        find_weights(tmp_path, "net")


@pytest.mark.parametrize("inner", [".index", ".index.fp16", ".fp16.index"])
def test_shards_are_found_through_their_index(tmp_path, inner):
    index = f"net.safetensors{inner}.json"
    (tmp_path / index).write_text(
        json.dumps({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}})
    )
    (tmp_path / "1.safetensors").touch()
    with pytest.raises(AntiPureError, match=r"lacks 2\.safetensors, a part of the weights"):
        find_weights(tmp_path, "net")
    (tmp_path / "2.safetensors").touch()
    found, variant = find_weights(tmp_path, "net")
    assert [path.name for path in found] == ["1.safetensors", "2.safetensors"]
    assert variant == ("fp16" if "fp16" in index else None)


@pytest.mark.parametrize(
    "names", [None, [], {}, {"a": 3}, {"a": "../x.safetensors"}, {"a": "/x.safetensors"}, {"a": "x.bin"}]
    + [{"a": "\0.safetensors"}, {"a": "..\\x.safetensors"}],
    ids=str,
)  # fmt: skip
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, names):
    (tmp_path / "net.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path.parent / "x.safetensors").touch()
    with pytest.raises(AntiPureError, match=r"names no \.safetensors files"):
        find_weights(tmp_path, "net")


def test_pickles_that_are_no_archive_are_read_too(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pth", "weights")[0]["conv.bias"], STATE["conv.bias"])
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(AntiPureError):
        read_weights(tmp_path / "old.pth", "weights")
