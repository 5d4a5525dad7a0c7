"""Show Report: the text comes out as it went in, to the page and along the wire."""

import pytest
from antipure.nodes.report import ShowReport


@pytest.mark.parametrize("text", ["", "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", "ü\u2028\r\n"])
def test_the_text_is_not_touched(text):
    shown = ShowReport().show(text)
    assert shown["ui"]["text"] == [text]
    assert shown["result"] == (text,)
