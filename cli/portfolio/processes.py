"""`--workers N`: a process each, with the models loaded in it. What a worker that dies had begun is done again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ...nodes import progress
from .plan import Job
from .work import Outcome, Setup, Worker

TRIES = 2  # how often a picture may take its worker with it
_TELL_SECONDS = 0.5
Tell = Callable[[str, float], None]  # how far a picture is, in 0..1


def run_here(setup: Setup, jobs: Iterable[Job], tell: Tell) -> Iterator[Outcome]:
    """All jobs in this process, one after another."""
    worker = Worker(setup)
    if fatal := worker.ready():
        yield Outcome(fatal=fatal)
        return
    for job in jobs:
        with _listening(lambda done, total, job=job: tell(job.picture, done / max(total, 1))):  # type: ignore[misc]
            outcome = worker.do(job)
        yield outcome


@contextmanager
def _listening(listener: Callable[[int, int], None]) -> Iterator[None]:
    before, progress.listener = progress.listener, listener
    try:
        yield
    finally:
        progress.listener = before


class _Process:
    """A worker's process, this side's end of the pipe to it, and the job it is at."""

    def __init__(self, setup: Setup, number: int):
        context = multiprocessing.get_context("spawn")  # forked children may not use CUDA
        self.number = number
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        with _own_gpu(number):
            self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.is_ready = False

    def give(self, job: Job) -> None:
        self.job = job
        with suppress(OSError):  # it died just now, which its end of the pipe tells
            self.pipe.send(job)

    def how_it_died(self) -> str:
        self.process.join(10)
        code = self.process.exitcode
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"signal {-code}, {signal.Signals(-code).name}"
        return f"status {code}"

    def stop(self) -> None:
        self.pipe.close()  # an idle worker ends by itself
        self.process.terminate()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def run_processes(setup: Setup, jobs: Iterable[Job], workers: int, tell: Tell) -> Iterator[Outcome]:
    """All jobs by so many processes, in the order in which they are done."""
    waiting, dead = deque(jobs), Counter[tuple[str, str]]()
    processes = [_Process(setup, number) for number in range(min(workers, max(len(waiting), 1)))]
    try:
        while waiting or any(each.job for each in processes):
            for end in wait([each.pipe for each in processes]):
                one = next(each for each in processes if each.pipe is end)
                try:
                    message: Any = one.pipe.recv()
                except (EOFError, OSError):
                    how = one.how_it_died()
                    one.stop()
                    if not one.is_ready:
                        yield Outcome(fatal=f"A worker process could not start ({how}); give fewer --workers.")
                        return
                    if one.job is not None:
                        dead[one.job.key] += 1
                        if dead[one.job.key] < TRIES:
                            waiting.appendleft(one.job)
                        else:
                            yield _gave_up(one.job, how)
                    processes.remove(one)
                    if waiting:
                        processes.append(_Process(setup, one.number))
                    continue
                if isinstance(message, float):
                    if one.job is not None:
                        tell(one.job.picture, message)
                    continue
                if isinstance(message, Outcome):
                    one.job = None
                    yield message
                elif message is not None:  # models that cannot be loaded
                    yield Outcome(fatal=message)
                    return
                one.is_ready = True
                if waiting:
                    one.give(waiting.popleft())
    finally:
        for each in processes:
            each.stop()


def _gave_up(job: Job, how: str) -> Outcome:
    return Outcome(
        job,
        error=f"The worker process died {TRIES} times at this picture ({how}), as it does where memory runs out; take "
        "fewer --workers or a smaller picture.",
    )


@contextmanager
def _own_gpu(number: int) -> Iterator[None]:
    """What is started meanwhile sees one GPU of those that this process sees; nothing where there are none."""
    count = torch.cuda.device_count()
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if count:
        seen = before.split(",") if before else [str(i) for i in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[number % len(seen)]
    try:
        yield
    finally:
        if count:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _serve(pipe: Connection, setup: Setup) -> None:
    """A worker's whole life; it ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it, which ends this one
    last = [0.0]

    def told(done: int, total: int) -> None:
        if time.monotonic() - last[0] > _TELL_SECONDS:
            last[0] = time.monotonic()
            pipe.send(done / max(total, 1))

    with _listening(told):
        try:
            worker = Worker(setup)
            pipe.send(worker.ready())
            while True:
                pipe.send(worker.do(pipe.recv()))
        except (EOFError, OSError):
            return
