"""What is said when a requirement is not installed, and when an error is shown by ComfyUI or crosses processes."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from antipure.cli.connection import Unreachable
from antipure.methods import requirements
from antipure.methods.errors import AntiPureError, both_sizes, sizes

ROOT = Path(__file__).resolve().parents[1]
# Runs before the pack: some packages are not there.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {names!r} else real(name, *rest)
"""


def run(names: tuple[str, ...], code: str) -> str:
    script = HIDE.format(names=names) + code
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_the_list_is_that_of_requirements_txt():
    listed = [re.split("[<>=]", line)[0] for line in (ROOT / "requirements.txt").read_text().split()]
    assert list(requirements.REQUIREMENTS) == listed
    declared = [re.split("[<>= ;]", line)[0].lower() for line in requires("antipure") or [] if "extra" not in line]
    assert sorted(declared) == sorted(listed)


def test_nothing_is_missing_here():
    assert requirements.missing() == []


def test_what_is_missing_is_named_with_its_command():
    found = run(("diffusers", "peft"), "from antipure.methods import requirements as r; print(r.sentence(r.missing()))")
    assert found.startswith("diffusers, peft are not installed; run: ")
    assert f'"{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"' in found
    assert "\n" not in found


LOAD = """
from antipure import NODE_CLASS_MAPPINGS as nodes
try:
    nodes["AntiPureLoadDenoiser"]().load("bundled", "fp32")
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_a_node_names_it_on_use():
    found = run(("diffusers",), LOAD)
    assert "diffusers is not installed; run: " in found
    assert "No module named" not in found


def test_a_node_names_what_is_missed_where_nobody_looks(monkeypatch):
    from antipure.nodes.missing import naming_requirements

    class Node:
        FUNCTION = "work"

        def work(self, name):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    naming_requirements(Node)
    with pytest.raises(AntiPureError, match="^peft is not installed; run: "):
        Node().work("peft.tuners")
    with pytest.raises(ModuleNotFoundError, match="'somebodys_own'"):
        Node().work("somebodys_own")
    assert requirements.missed(ValueError("peft")) is None


def test_the_host_shows_the_error_without_a_path():
    """ComfyUI's `full_type_name`: no module before what is built in."""
    assert AntiPureError.__module__ == "builtins"
    assert AntiPureError.__qualname__ == "AntiPureError"


@pytest.mark.parametrize("error", [AntiPureError("What was wrong; what to do."), Unreachable("Nobody answers.")])
def test_errors_cross_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.args == error.args


def test_sizes_as_people_write_them():
    assert sizes((1, 3, 64, 48)) == "1×3×64×48"
    assert both_sizes((1, 3, 64, 48), (1, 3, 128, 96)) == "48×64 and 96×128 pixels"
    assert both_sizes((1, 3, 64, 48), (2, 3, 64, 48)) == "1×3×64×48 and 2×3×64×48"
