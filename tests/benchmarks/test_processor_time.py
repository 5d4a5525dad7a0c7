"""Processor time by stage and thread, against the clocks that threads keep of themselves."""

from __future__ import annotations

import os
import threading
import time

import pytest

from benchmarks.processor_time import TASKS, ProcessorTime, Spent, thread_seconds

needs_proc = pytest.mark.skipif(not TASKS.is_dir(), reason="this system does not tell threads apart")


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(500))


@needs_proc
def test_threads_are_told_apart():
    """A worker that outlives the stage, the caller, and one who only waits."""
    clock, told, go, leave = ProcessorTime(), {}, threading.Event(), threading.Event()
    done = threading.Event()

    def work() -> None:
        go.wait()
        before = time.thread_time()
        spin(0.3)
        told["worker"] = time.thread_time() - before
        done.set()
        leave.wait()

    threads = [threading.Thread(target=work), threading.Thread(target=leave.wait)]
    for thread in threads:
        thread.start()
    try:
        with clock.stage("both"):
            go.set()
            before = time.thread_time()
            spin(0.15)
            told["caller"] = time.thread_time() - before
            done.wait()
    finally:
        leave.set()
        for thread in threads:
            thread.join()
    spent = clock.stages["both"]
    assert len(spent.threads) == 2
    assert spent.threads == pytest.approx((told["worker"], told["caller"]), abs=0.06)
    assert spent.busiest == spent.threads[0]
    assert spent.processor == pytest.approx(sum(told.values()), abs=0.06)
    assert spent.wall >= 0.3


@needs_proc
def test_a_stage_that_is_entered_again_goes_on():
    clock = ProcessorTime()
    for _ in range(2):
        with clock.stage("a"):
            spin(0.1)
    with pytest.raises(ValueError, match="within"), clock.stage("b"):
        raise ValueError("within")
    assert list(clock.stages) == ["a", "b"]
    assert clock.stages["a"].processor == pytest.approx(0.2, abs=0.05)
    assert clock.stages["a"].threads == pytest.approx((0.2,), abs=0.06)
    assert clock.data()["a"]["processor"] == clock.stages["a"].processor


def test_fields_are_those_of_proc(tmp_path):
    """A thread's name may hold blanks and brackets."""
    rest = " ".join(str(i) for i in range(4, 53))  # field i of proc(5) holds the number i, but for the third
    for number, name in (("7", "python"), ("12", "a) R (b c")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "stat").write_text(f"{number} ({name}) R {rest}\n")
    seconds = (14 + 15) / os.sysconf("SC_CLK_TCK")
    assert thread_seconds(tmp_path) == {"7": seconds, "12": seconds}
    assert thread_seconds(tmp_path / "nowhere") == {}


def test_the_table_adds_up():
    clock = ProcessorTime()
    clock.stages = {"training": Spent(100, 60, (40, 20)), "report": Spent(10, 9, ())}
    lines = clock.table().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["training", "100", "60", "40", "40 + 20"]
    assert cells[3] == ["report", "10", "9", "9", ""]
    assert cells[4] == ["all", "110", "69", "49", ""]
