"""The one exception users are meant to see."""

from __future__ import annotations

from collections.abc import Iterable


class AntiPureError(ValueError):
    """Bad input or an impossible request: one sentence that says what was wrong and what to do."""

    # ComfyUI shows an exception's type before its message, with the path of its module, unless that is built in.
    __module__ = "builtins"

    def __reduce__(self) -> tuple:
        return _again, (None if type(self) is AntiPureError else type(self), self.args)


def _again(kind: type[AntiPureError] | None, args: tuple) -> AntiPureError:
    """Unpickled in another process: pickle would look for the class where its module's name says."""
    return (kind or AntiPureError)(*args)


def sizes(shape: Iterable[int]) -> str:
    """A tensor's shape for a sentence: "1×3×64×48"."""
    return "×".join(map(str, shape))


def both_sizes(first: tuple[int, ...], second: tuple[int, ...]) -> str:
    """The shapes of two batches of pictures that should be alike, B×C×H×W: as users know sizes, where only they differ.

    "48×64 and 96×128 pixels" is width × height, as everywhere outside of tensors.
    """
    if len(first) == len(second) == 4 and first[:2] == second[:2]:
        return f"{first[3]}×{first[2]} and {second[3]}×{second[2]} pixels"
    return f"{sizes(first)} and {sizes(second)}"
