"""Processor time by stage and thread: what a command would take on free cores, told by one that ran on busy ones.

A wall clock counts other people's work, too. The threads of a stage run at the same time, so on free cores it takes at
least as long as its busiest thread, and about as long where the others wait for that one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from antipure.methods.figures.text_table import text_table

TASKS = Path("/proc/self/task")
LEAST = 0.05  # seconds: threads below did nothing in a stage


@dataclass(frozen=True)
class Spent:
    """wall, processor: seconds of a stage. threads: processor seconds of its threads that are still there, falling."""

    wall: float
    processor: float
    threads: tuple[float, ...]

    @property
    def busiest(self) -> float:
        """Seconds on free cores, at least: of the busiest thread; of all where the system does not tell them apart."""
        return self.threads[0] if self.threads else self.processor


def thread_seconds(tasks: Path = TASKS) -> dict[str, float]:
    """Processor seconds of every thread of this process by its number; empty where the system does not tell."""
    found = {}
    for task in tasks.glob("*/stat"):
        try:
            told = task.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        # proc(5): utime and stime are fields 14 and 15; a name in brackets, which may hold blanks, is the second.
        found[task.parent.name] = (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")
    return found


class ProcessorTime:
    """Stages by name, in the order in which they were entered; entered again, a stage goes on."""

    def __init__(self) -> None:
        self.stages: dict[str, Spent] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is done within as this stage's."""
        before, processor, wall = thread_seconds(), time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            spent = [seconds - before.get(thread, 0.0) for thread, seconds in thread_seconds().items()]
            old = self.stages.get(name, Spent(0, 0, ()))
            # The same threads work on in the next part of a stage, so the busiest is added to the busiest.
            mine = sorted((seconds for seconds in spent if seconds >= LEAST), reverse=True)
            width = max(len(mine), len(old.threads))
            threads = [sum(part[i] for part in (old.threads, mine) if i < len(part)) for i in range(width)]
            self.stages[name] = Spent(
                old.wall + time.perf_counter() - wall,
                old.processor + time.process_time() - processor,
                tuple(sorted(threads, reverse=True)),
            )

    def table(self) -> str:
        """A row a stage, and their sum: the wall, all threads, the busiest thread, and each."""
        rows = [
            [name, f"{s.wall:.0f}", f"{s.processor:.0f}", f"{s.busiest:.0f}", " + ".join(f"{t:.0f}" for t in s.threads)]
            for name, s in self.stages.items()
        ]
        every = self.stages.values()
        sums = [sum(s.wall for s in every), sum(s.processor for s in every), sum(s.busiest for s in every)]
        rows.append(["all", *(f"{value:.0f}" for value in sums), ""])
        head = ["stage", "wall, s", "processor time, s", "busiest thread, s", "by thread"]
        return text_table(head, rows)

    def data(self) -> dict[str, dict[str, object]]:
        """The same as plain values: for JSON."""
        return {
            name: {"wall": s.wall, "processor": s.processor, "threads": list(s.threads)}
            for name, s in self.stages.items()
        }
