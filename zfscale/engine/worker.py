"""One worker: holds a model and carries out tasks. Read, step, write.

Knows sources, models, analyses and stores; not which other workers there are, nor Ray.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import fsspec
import torch

from zfscale import analyses, models
from zfscale.analyses import Batch, Output, Pass
from zfscale.convnet.network import Network
from zfscale.convnet.runtime import prepare
from zfscale.engine.task_images import Feed
from zfscale.errors import UsageError
from zfscale.job import Job
from zfscale.records import Failure, File, Image, Reason, Receipt, Task
from zfscale.runs import arrays, segments
from zfscale.storage import open_storage

_NO_MEMORY = re.compile("can't allocate memory|not enough memory")
"""What torch says where a CPU's memory is short."""


@dataclass(frozen=True)
class Setup:
    """All that a worker needs to start, picklable.

    `job` is resolved: paths are absolute, model and images are known. `device` is cpu or cuda;
    `threads` are the cores that decoding and computing share.
    """

    job: Job
    device: str
    threads: int


class Executor(Protocol):
    """Carries out tasks somewhere: in process, on embedded Ray, on a cluster."""

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        """Yield one receipt or failure per task, in any order, as they come."""

    def close(self) -> None:
        """Let go of all workers; tasks in flight are dropped."""


class Serial:
    """An executor without other processes: one worker, here. For tests, debugging, small runs."""

    def __init__(self, setup: Setup) -> None:
        self._worker = Worker(setup)

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        """Do the tasks one after the other. What would be a failure elsewhere is raised here."""
        return map(self._worker.run, tasks)

    def close(self) -> None:
        """Nothing to let go of."""


class Worker:
    """A loaded model and its analyses. `run` may be called for any task, any number of times."""

    def __init__(self, setup: Setup) -> None:
        if setup.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device: cuda: there is no GPU that torch can use; use auto or cpu")
        prepare(setup.threads)
        self.setup = setup
        self.storage = open_storage(setup.job.run)
        self.passes = passes(setup.job)

    @cached_property
    def network(self) -> Network:
        """The network of the job, on the worker's device."""
        return load_network(self.setup.job, self.setup.device)

    def run(self, task: Task) -> Receipt:
        """Carry out one task and publish what it gives; the same files whoever does it."""
        started = time.monotonic()
        lent = _Lent(self, task)
        with self._memory_named():
            output = self.passes[task.stage].run(lent, task)
        files = self._publish(task, output, lent.feed)
        return Receipt(task.id, files, lent.feed.counts(), time.monotonic() - started)

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        """Say what to change where memory is short: torch has no error of its own for a CPU."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not _NO_MEMORY.search(str(error)):
                raise
            raise UsageError(
                f"batch: {self.setup.job.batch} images of {self.network.name} do not fit in the "
                f"memory of the {self.setup.device}; use a smaller one ({error!s:.200})"
            ) from error

    def _publish(self, task: Task, output: Output, feed: Feed) -> tuple[File, ...]:
        tables = dict(output.tables)
        if task.images is not None:
            tables["outcomes"] = feed.outcomes()
        files = [segments.write(self.storage, task.id, name, rows) for name, rows in tables.items()]
        for block in output.blocks:
            files.extend(arrays.write(self.storage, block))
        return tuple(files)


class _Lent:
    """The `Context` of one task."""

    def __init__(self, worker: Worker, task: Task) -> None:
        self._worker = worker
        setup = worker.setup
        recipe = worker.network.preprocessing
        self.feed = Feed(task, setup.job.batch, recipe, setup.device, setup.threads)

    @property
    def network(self) -> Network:
        return self._worker.network

    def batches(self) -> Iterator[Batch]:
        return self.feed.batches()

    def quarantine(self, image: Image, reason: Reason) -> None:
        self.feed.quarantine(image, reason)

    def read(self, array: str, start: int, stop: int) -> Any:
        return arrays.read(self._worker.storage, array, start, stop)


def passes(job: Job) -> dict[str, Pass]:
    """The passes of all analyses of a job by name, in their order."""
    return {
        step.name: step
        for name, given in job.analyses.items()
        for step in analyses.load(name).passes(analyses.options(name, given))
    }


def load_network(job: Job, device: str) -> Network:
    """The network that a job names, its weights brought here if they are a URL."""
    if job.model is None:
        raise UsageError(f"{job.run}: no run is here yet, so the job must name a model")
    weights = job.weights
    if weights is not None and "://" in weights:
        weights = fsspec.open_local(f"simplecache::{weights}")
    return models.load(job.model, weights, device)
