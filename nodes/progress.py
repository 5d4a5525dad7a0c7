"""What a user sees while a node works: progress bar, preview, loss and remaining time; and the way to cancel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..methods.pictures import to_uint8
from . import host

_PREVIEW_SECONDS = 0.5
_TEXT_SECONDS = 1.0
# Who is told how far a node is, as (done, total), instead of the console; None: the console shows a bar of its own.
listener: Callable[[int, int], None] | None = None


class Progress:
    """The `Progress` of the algorithms: progress bar, preview and cancel. Use as a context manager.

    Called as progress(done, total, picture=None, loss=None), picture 1×3×H×W in 0..1.
    node_id: the node that shows loss and remaining time as text; None shows none.
    """

    def __init__(self, title: str, node_id: str | None = None):
        self.title = title
        self.node_id = node_id
        self._bar: Any = None  # ComfyUI's or tqdm's, made when the total is known
        self._last_preview = self._last_text = 0.0
        self._began: tuple[float, int] | None = None  # when the first call came, and with how much done

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None and not host.inside_comfyui():
            self._bar.close()

    def __call__(
        self, done: int, total: int, picture: Tensor | None = None, loss: Tensor | float | None = None
    ) -> None:
        host.check_interrupted()
        if host.inside_comfyui():
            self._update_comfyui(done, total, picture)
            self._update_text(done, total, loss)
        else:
            self._update_console(done, total, loss)

    def _update_comfyui(self, done: int, total: int, picture: Tensor | None) -> None:
        if self._bar is None:
            self._bar = host.progress_bar(total)
        preview = None
        if picture is not None and (done == total or time.monotonic() - self._last_preview > _PREVIEW_SECONDS):
            self._last_preview = time.monotonic()
            preview = ("JPEG", _to_pil(picture), 512)
        self._bar.update_absolute(done, total, preview)

    def _update_text(self, done: int, total: int, loss: Tensor | float | None) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        elif done < total and now - self._last_text > _TEXT_SECONDS:
            self._last_text = now
            began, first = self._began
            lines = [f"step {done} of {total}"]
            if loss is not None:
                lines.append(f"loss {float(loss):.4f}")
            if done > first:
                lines.append(f"{duration((now - began) / (done - first) * (total - done))} left")
            host.show_text("\n".join(lines), self.node_id)

    def _update_console(self, done: int, total: int, loss: Tensor | float | None) -> None:
        if listener is not None:
            listener(done, total)
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, desc=self.title, leave=False, disable=None, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if loss is not None and not self._bar.disable and (done == total or done % 10 == 0):
            self._bar.set_postfix(loss=f"{float(loss):.4f}")


def duration(seconds: float) -> str:
    """A duration in words: '45 s', '3 min', '2 h 5 min'."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _to_pil(picture: Tensor):
    from PIL import Image

    return Image.fromarray(to_uint8(picture[:1])[0])
