"""A requirement that is not installed: one sentence instead of Python's, wherever in a node it is missed."""

from __future__ import annotations

from functools import wraps

from ..methods.errors import AntiPureError
from ..methods.requirements import missed


def naming_requirements(node: type) -> None:
    """Let a node's function raise `AntiPureError` with the command to install where a requirement is missed."""
    name: str = node.FUNCTION  # type: ignore[attr-defined]
    function = getattr(node, name)

    @wraps(function)
    def run(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            if (sentence := missed(error)) is None:
                raise
            raise AntiPureError(sentence) from error

    setattr(node, name, run)
