"""nodes/outputs.py: where nodes save, with ComfyUI and without."""

from __future__ import annotations

import pytest
from antipure.methods.errors import AntiPureError
from antipure.nodes.outputs import new_output_path, output_folder, saved_path


def test_files_lie_below_the_folder_of_the_moment(tmp_path):
    with output_folder(tmp_path):
        with output_folder(tmp_path / "inner"):
            assert saved_path("a/b", ".state") == tmp_path / "inner/antipure_patches/a/b.state"
        assert saved_path("b.v2", ".state") == tmp_path / "antipure_patches/b.v2.state"


def test_inside_comfyui_its_own_folder_counts(comfyui, tmp_path):
    with output_folder(tmp_path / "elsewhere"):
        assert saved_path("a", ".state") == tmp_path / "output/antipure_patches/a.state"


def test_new_paths_count_on(tmp_path):
    with output_folder(tmp_path):
        for number in (1, 2, 3):
            path = new_output_path("mine/patch", ".safetensors")
            assert path == tmp_path / f"antipure_patches/mine/patch_{number:05}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


@pytest.mark.parametrize("name", ["", "  ", ".", "a/..", "../a", "../../etc/a", "/etc/a", "a/../../b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with output_folder(tmp_path), pytest.raises(AntiPureError, match="plain name"):
        saved_path(name, ".state")
