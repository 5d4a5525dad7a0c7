"""nodes/outputs.py: where nodes save, with ComfyUI and without."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from antipure.methods.errors import AntiPureError
from antipure.nodes.outputs import output_folder, save_new, saved_path


def test_files_lie_below_the_folder_of_the_moment(tmp_path):
    with output_folder(tmp_path):
        with output_folder(tmp_path / "inner"):
            assert saved_path("a/b", ".state") == tmp_path / "inner/antipure_patches/a/b.state"
        assert saved_path("b.v2", ".state") == tmp_path / "antipure_patches/b.v2.state"


def test_inside_comfyui_its_own_folder_counts(comfyui, tmp_path):
    with output_folder(tmp_path / "elsewhere"):
        assert saved_path("a", ".state") == tmp_path / "output/antipure_patches/a.state"


def test_new_files_count_on(tmp_path):
    with output_folder(tmp_path):
        for number in (1, 2, 3):
            path = save_new("mine/patch", ".safetensors", b"%d" % number)
            assert path == tmp_path / f"antipure_patches/mine/patch_{number:05}.safetensors"
    assert [path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))] == [b"1", b"2", b"3"]


def test_threads_never_save_to_the_same_place(tmp_path):
    with output_folder(tmp_path), ThreadPoolExecutor(8) as threads:
        saved = list(threads.map(lambda i: (save_new("patch", ".bin", b"%d" % i), i), range(100)))
    assert len({path for path, _ in saved}) == 100
    assert all(path.read_bytes() == b"%d" % i for path, i in saved)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 100, "nothing temporary is left"


@pytest.mark.parametrize("name", ["", "  ", ".", "a/..", "../a", "../../etc/a", "/etc/a", "a/../../b", "a\0b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with output_folder(tmp_path), pytest.raises(AntiPureError, match="plain name"):
        saved_path(name, ".state")
