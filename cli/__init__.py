"""The command `antipure`: runs API workflows in process or on a ComfyUI server."""
