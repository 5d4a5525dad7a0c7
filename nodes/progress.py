"""What a user sees while a node works: progress bar, preview, loss and remaining time; and the way to cancel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ..methods.attacks.ensemble import AnyBatching
from ..methods.interruption import heeding, layers_of
from ..methods.pictures import to_uint8
from . import host

_PREVIEW_SECONDS = 0.5
_TEXT_SECONDS = 1.0
# Who is told how far a node is, as (done, total), instead of the console; None: the console shows a bar of its own.
listener: Callable[[int, int], None] | None = None


class Progress:
    """The `Progress` of the algorithms: progress bar, preview and cancel. Use as a context manager.

    Called as progress(done, total, picture=None, loss=None), picture 1×3×H×W in 0..1.
    node_id: the node that shows loss and remaining time as text; None shows none. networks: those that run meanwhile,
    `host.networks_of` the models: a cancel is heard before each of their layers, not only between steps. batching: of
    the session whose first step is long; how much of it is done is guessed from the layers until it is told.
    """

    def __init__(
        self,
        title: str,
        node_id: str | None = None,
        networks: Iterable[nn.Module] = (),
        batching: AnyBatching | None = None,
    ):
        self.title = title
        self.node_id = node_id
        self.networks, self.batching = list(networks), batching
        self._heard = 0  # work of the networks' layers, in forwards of one: a backward takes as long as two
        self._heeding = ExitStack()
        self._bar: Any = None  # ComfyUI's or tqdm's, made when the total is known
        self._last_preview = self._last_text = self._began = 0.0
        self._done, self._total = 0.0, 0
        self._step = "before the first step"

    def __enter__(self) -> Progress:
        self._began = self._last_text = time.monotonic()
        if host.inside_comfyui():
            self._heeding.enter_context(heeding(self.networks, self._heed))
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc) -> None:
        self._heeding.close()
        if not host.inside_comfyui():
            if self._bar is not None:
                self._bar.close()
        elif kind is not None:
            how = "cancelled" if issubclass(kind, host.interruption()) else "failed"
            host.show_text(f"{how}\n{self._step}", self.node_id)

    def begin(self, picture: Tensor, total: int = 0) -> None:
        """Show at once that work has begun, with the picture it begins with: a first step may take long.

        total: how many steps there will be, 0 where that is not known yet.
        """
        self._total = total
        if host.inside_comfyui():
            self._update_comfyui(0, max(total, 1), picture)
            host.show_text("starting", self.node_id)

    def _heed(self, backward: bool) -> None:
        host.check_interrupted()
        self._heard += 2 if backward else 1
        calls = getattr(self.batching, "calls", 0)
        if calls and self._done == 0 and self._total and time.monotonic() - self._last_text > _TEXT_SECONDS:
            whole = 3 * calls * len(layers_of(self.networks))
            self._update_text(min(self._heard / whole, 0.99), self._total, None)

    def __call__(
        self, done: float, total: int, picture: Tensor | None = None, loss: Tensor | float | None = None
    ) -> None:
        host.check_interrupted()
        self._done = done
        if host.inside_comfyui():
            self._update_comfyui(done, total, picture)
            self._update_text(done, total, loss)
        else:
            self._update_console(done, total, loss)

    def _update_comfyui(self, done: float, total: int, picture: Tensor | None) -> None:
        if self._bar is None:
            self._bar = host.progress_bar(total)
        preview = None
        if picture is not None and (done == total or time.monotonic() - self._last_preview > _PREVIEW_SECONDS):
            self._last_preview = time.monotonic()
            preview = ("JPEG", _to_pil(picture), 512)
        self._bar.update_absolute(done, total, preview)

    def _update_text(self, done: float, total: int, loss: Tensor | float | None) -> None:
        now = time.monotonic()
        self._step = f"step {int(done)} of {total}"
        if 0 < done < total and now - self._last_text > _TEXT_SECONDS:
            self._last_text = now
            lines = [self._step]
            if loss is not None:
                lines.append(f"loss {float(loss):.4f}")
            lines.append(f"{duration((now - self._began) / done * (total - done))} left")
            host.show_text("\n".join(lines), self.node_id)

    def _update_console(self, done: float, total: int, loss: Tensor | float | None) -> None:
        if listener is not None:
            listener(int(done), total)
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
