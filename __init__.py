"""AntiPure for ComfyUI: protect pictures against purification and customization, purify, and measure.

This folder is both a ComfyUI custom node and the installable package `antipure`. Importing it costs torch and
little more; diffusers and peft load when a node first needs them.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
