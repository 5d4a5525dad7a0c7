"""cli/terminal.py: nothing foreign reaches a terminal raw."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from pathlib import Path

import pytest
from antipure import cli
from antipure.cli import main as command
from antipure.cli.main import main
from antipure.cli.result import Result
from antipure.cli.terminal import complain, one_line, printable, show
from antipure.methods.errors import AntiPureError

HOSTILE = "a\x1b]0;owned\x07\x9b31m\r\x7f\u202eb\u2066\u2028\ud800c"
CLEAN = r"a\u001b]0;owned\u0007\u009b31m\r\u007f\u202eb\u2066\u2028\ud800c"


def test_what_controls_a_terminal_is_escaped():
    assert printable(HOSTILE) == CLEAN
    assert printable("\U000e0041") == r"\udb40\udc41"


@pytest.mark.parametrize(
    "text", ["", "a\tb\nc", "Größe × 2 → 日本語", "👩\u200d🔬", "می\u200cخواهم", "no\u00a0break\u3000", "\\n"]
)
def test_all_other_text_stays(text):
    assert printable(text) == text


def test_json_stays_the_json_it_is():
    value = {"name": HOSTILE, "other": ["日本", "\U000e0041"]}
    shown = printable(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(shown) == value
    assert "\x7f" not in shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" a\n\r\n b\u2028c\t", "a b c"),
        (None, "None"),
        (["\x1b"], r"['\x1b']"),
        ("x\x1by", r"x\u001by"),
        ("a" * 300, "a" * 300),
        ("a" * 4000 + "end", "a" * 200 + "..." + "a" * 94 + "end"),
    ],
)
def test_one_line(text, line):
    assert one_line(text) == line


def test_one_line_of_lists_in_lists():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert one_line(nested) == "list"
    while nested:  # freed from the outside, not recursively
        nested = nested.pop()


def test_a_terminal_of_few_letters(monkeypatch):
    for name, write in (("stdout", show), ("stderr", complain)):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="")
        monkeypatch.setattr(sys, name, stream)
        write("Ä → 日")
        stream.flush()
        written = stream.buffer.getvalue().decode("cp1252")
        assert written.endswith("Ä \\u2192 \\u65e5\n")


@pytest.mark.parametrize(
    "arguments", [["run", "protect"], ["measure", "a.png", "b.png"], ["report", "a.png"], ["protect", "a.png"]]
)
def test_what_a_server_shows_is_cleaned(arguments, monkeypatch, capsys, tmp_path):
    shown = {"text": [HOSTILE], "metrics": [{}], "markdown": [HOSTILE], "report": [{}]}
    result = Result(ui={"3": shown, "6": shown}, files={"4": [Path(HOSTILE)], "7": [Path(HOSTILE)]})
    monkeypatch.setattr(command, "run_workflow", lambda *_: result)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert CLEAN in printed
    assert all(c == "\n" or c.isprintable() for c in printed)


@pytest.mark.parametrize("shown", [{}, {"text": 3, "metrics": []}, {"text": [[]], "report": "x", "markdown": [None]}])
def test_answers_of_another_shape_are_sentences(shown, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "run_workflow", lambda *_: Result(ui={"3": shown, "6": shown}))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "protect"]) == 0
    assert capsys.readouterr() == ("", "")
    for arguments in (["measure", "a", "b"], ["measure", "a", "b", "--json"], ["report", "a"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("antipure: The server's answer holds no ")
        assert error.count("\n") == 1


def test_an_error_is_one_clean_line(monkeypatch, capsys):
    def fail(*_):
        raise AntiPureError(f"{HOSTILE}\nsecond" + "x" * 5000)

    monkeypatch.setattr(command, "run_workflow", fail)
    assert main(["run", "protect"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(r"antipure: a\u001b]0;owned\u0007\u009b31m \u007f\u202eb\u2066 \ud800c second")
    assert error.count("\n") == 1
    assert len(error) < 2100


def test_hostile_file_names_are_named_harmlessly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[2J\nb.png"
    Path(name).write_text("no picture")
    for arguments in (["protect", name], ["protect", f"missing{name}"], ["run", f"{name}.json"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert re.search(r"a\\(u001|x1)b\[2J( |\\n)b\.png", error), "it can still be told"
        assert all(c.isprintable() for c in error.removesuffix("\n"))


def test_the_commands_print_through_it_alone():
    for path in Path(cli.__file__).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        assert "print" not in names or path.name == "terminal.py", path
