"""The documents point to what is there, and the registry's archive holds what the nodes need and no more."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from antipure.nodes import NODE_DISPLAY_NAME_MAPPINGS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bundled/*.md"), *ROOT.glob("benchmarks/**/*.md")]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tracked(*options: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return listed.stdout.split("\0")[:-1]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    targets = [link.split("#")[0] for link in links if not re.match(r"https?:|#", link)]
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/ARCHITECTURE.md"])
def test_files_that_guides_name_exist(name):
    """`methods/attacks/pgd.py` from the root; `pgd.py` alone, in the part that tells of its folder."""
    named = set(re.findall(r"`([\w/.-]+\.(?:py|json|md))`", (ROOT / name).read_text(encoding="utf-8")))
    files = [f"/{path}" for path in tracked()]
    placeholders = {f"methods/{room}/NAME.py" for room in ("baselines", "purification", "metrics")}
    assert len(named) > 10
    assert [one for one in named - placeholders if not any(path.endswith(f"/{one}") for path in files)] == []


def test_the_readme_is_an_entrance():
    assert len(README.splitlines()) <= 180
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 4
    for command in ("make demo", "make test"):
        assert command in README


@pytest.mark.parametrize("title", NODE_DISPLAY_NAME_MAPPINGS.values())
def test_the_readme_has_a_line_for_each_node(title):
    assert re.search(rf"^\|[^|]*\*\*{re.escape(title)}\*\*[^|]*\| \S", README, re.MULTILINE)


def test_the_readme_names_each_workflow():
    for path in (ROOT / "workflows" / "api").glob("*.json"):
        assert f"| `{path.stem}` | " in README


def test_the_registrys_archive():
    left_out = set(tracked("--cached", "--ignored", "--exclude-from=.comfyignore"))
    archive = set(tracked()) - left_out
    folders = {path.split("/")[0] for path in archive if "/" in path}
    assert folders == {"bundled", "cli", "docs", "kernels", "locales", "methods", "nodes", "web", "workflows"}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= archive
    whole = ("bundled/", "cli/", "kernels/", "locales/", "methods/", "nodes/", "web/", "workflows/")
    assert not [path for path in left_out if path.startswith(whole)]
    assert not [path for path in archive if path.startswith("docs/") and not path.endswith(".md")]
