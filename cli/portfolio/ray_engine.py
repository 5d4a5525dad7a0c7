"""`--engine ray`: the same work by the actors of a Ray cluster, one per GPU or share of its processors.

Ray Data hands out pictures as actors become free, holds back what nobody has fetched yet, starts actors anew that were
lost, and gives their pictures to others. Needs `pip install "antipure[ray]"`.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...methods.errors import AntiPureError
from ...methods.files import reason
from ..terminal import one_line
from .plan import Job
from .work import Outcome, Setup, Worker

TRIES = 3  # how often a picture may take its actor with it
WAVE = 1000  # pictures that Ray is given at once, each a block of its own; at least so many per actor:
WAVE_PER_ACTOR = 100


class Attempts:
    """How often each picture was begun, kept outside of the actors that may be lost."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[str, str]] = Counter()

    def begin(self, key: tuple[str, str]) -> int:
        self._begun[key] += 1
        return self._begun[key]


class Actor:
    """What Ray Data makes one of per worker: it holds the models."""

    def __init__(self, setup: Setup, attempts: Any):
        self._worker, self._attempts = Worker(setup), attempts
        self._fatal = self._worker.ready()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        if self._fatal:
            return {"outcome": pickle.dumps(Outcome(fatal=self._fatal))}
        job = pickle.loads(row["job"])
        if ray.get(self._attempts.begin.remote(job.key)) > TRIES:
            told = (
                f"The actor was lost {TRIES} times at this picture, as it is where memory runs out; take fewer actors."
            )
            return {"outcome": pickle.dumps(Outcome(job, error=told))}
        return {"outcome": pickle.dumps(self._worker.do(job))}


def run_ray(setup: Setup, jobs: Sequence[Job], workers: int | None, address: str | None) -> Iterator[Outcome]:
    """All jobs by a cluster's actors, in the order in which they are done.

    workers: actors; None: one per GPU of the cluster, else one per `setup.threads` of its processors. address: of a
    cluster that runs; None: one is made here and ends with this process.
    Raises `AntiPureError` where there is no Ray, or no cluster at the address, or it fails.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise AntiPureError("--engine ray needs the package Ray; pip install 'antipure[ray]'.") from None
    try:
        # Ray's own counts of usage are sent to its makers unless this is 0; nothing is sent from here unasked.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address=address or "local", include_dashboard=False if address is None else None,
                 log_to_driver=False, logging_level=logging.ERROR)  # fmt: skip
    except Exception as error:
        where = f"There is no Ray cluster at {one_line(address)}" if address else "Ray could not start"
        raise AntiPureError(f"{where} ({one_line(reason(error))}).") from error
    try:
        yield from _waves(ray, setup, jobs, workers)
    except ray.exceptions.RayError as error:
        raise AntiPureError(
            f"The Ray cluster failed ({one_line(reason(error))}); run the same command again: it goes on where it "
            "stopped."
        ) from error
    finally:
        ray.shutdown()


def _waves(ray: Any, setup: Setup, jobs: Iterable[Job], workers: int | None) -> Iterator[Outcome]:
    resources = ray.cluster_resources()
    gpus, share = int(resources.get("GPU", 0)), setup.threads or 1
    actors = workers or gpus or max(1, int(resources.get("CPU", 1)) // share)
    asked = {"num_gpus": min(1.0, gpus / actors)} if gpus else {"num_cpus": share}
    available = int(resources.get("CPU", 1))
    if not gpus and actors * share > available:
        raise AntiPureError(
            f"{actors} workers of {share} threads need {actors * share} processors, and the cluster has {available}; "
            "give fewer --workers or --threads."
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    attempts = ray.remote(num_cpus=0)(Attempts).remote()
    pool = ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2)
    pending = iter(jobs)
    while wave := list(itertools.islice(pending, max(WAVE, WAVE_PER_ACTOR * actors))):
        rows = [{"job": pickle.dumps(job)} for job in wave]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        data = data.map(Actor, fn_constructor_kwargs={"setup": setup, "attempts": attempts}, compute=pool, **asked)
        for row in data.iter_rows():
            yield pickle.loads(row["outcome"])
