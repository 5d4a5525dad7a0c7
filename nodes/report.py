"""Show Report."""

from __future__ import annotations

from . import inputs


class ShowReport:
    DESCRIPTION = (
        "Shows a report on the node as it is meant to be read: headings, bold text and tables. For the Markdown of "
        "Robustness Report and Defence Report, and for any other text."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "show"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The text as it came in.",)
    SEARCH_ALIASES = ["markdown", "show text", "preview text", "table"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(text=inputs.wired_text("The text, in Markdown."))

    def show(self, text) -> dict:
        return {"ui": {"text": [text]}, "result": (text,)}
