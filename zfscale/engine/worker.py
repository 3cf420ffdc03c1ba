"""One worker: holds a model and carries out tasks. Read, compute, write.

Knows the collection, models, analyses and stores; not which other workers there are, nor Ray.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from zfscale import collection, models
from zfscale.analysis import Batch, Output
from zfscale.convnet.network import Network
from zfscale.convnet.runtime import prepare
from zfscale.engine.memory import check_memory
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.stages import Stage
from zfscale.engine.task_images import TaskImages
from zfscale.errors import FingerprintMismatch, TaskFailed, UsageError, ZfscaleError
from zfscale.records import (
    Columns,
    Failure,
    File,
    Image,
    Reason,
    Receipt,
    Shard,
    Task,
    array_path,
)
from zfscale.runs import arrays, segments
from zfscale.storage import files, open_storage

_NO_MEMORY = re.compile("can't allocate memory|not enough memory")
"""What torch says where a CPU's memory is short."""


class Executor(Protocol):
    """Carries out tasks somewhere: in process, on embedded Ray, on a cluster."""

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        """Yield one receipt or failure per task, in any order, as they come."""

    def close(self) -> None:
        """Let go of all workers; tasks in flight are dropped."""


class Serial:
    """An executor without other processes: one worker, here. For tests, debugging, small runs."""

    def __init__(self, job: ResolvedJob) -> None:
        self._worker = Worker(job)

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        """Do the tasks one after the other.

        What would be a failed attempt elsewhere ends the work here: it would fail again.
        """
        for task in tasks:
            try:
                yield self._worker.run(task)
            except (ZfscaleError, OSError):
                raise
            except Exception as error:
                raise TaskFailed(
                    f"{task} failed: {type(error).__name__}: {error}; what was finished before is "
                    "committed. `zfscale --debug run` shows where the error came from"
                ) from error

    def close(self) -> None:
        """Nothing to let go of."""


class Worker:
    """A loaded model and the analyses of a job. `run` may be called for any task, any number of
    times.

    `device_name` is the model of the GPU, or the instruction set of the CPU. Raises UsageError
    where the job cannot be computed here, FingerprintMismatch where its run has results of
    another device.
    """

    def __init__(self, job: ResolvedJob) -> None:
        if job.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device: cuda: there is no GPU that torch can use; use auto or cpu")
        prepare(job.threads_per_worker)
        self.job = job
        self.device_name = _device_name(job.device)
        if job.device_name not in (None, self.device_name):
            raise FingerprintMismatch(
                f"{job.run}: device: {job.device_name} → {self.device_name}. The results of "
                "different devices may differ in their last digits: go on with workers of the "
                "first kind, or use a new run directory"
            )
        self.storage = open_storage(job.run)
        self.stages = {stage.name: stage for stage in job.stages}
        self.network = load_network(job, job.device)
        check_memory(self.network, job)

    def run(self, task: Task) -> Receipt:
        """Carry out one task and publish what it gives; the same files whoever does it."""
        started = time.monotonic()
        stage = self.stages[task.analysis]
        context = TaskContext(self, stage, task)
        with self._memory_named():
            output = stage.analysis.run(context, task)
        files = self._publish(stage, task, output, context.images)
        return Receipt(
            task.id,
            files,
            context.images.counts(),
            time.monotonic() - started,
            self.device_name if stage.analysis.uses_network else "",
            tuple(context.warnings),
        )

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        """Say what to change where memory is short: torch has no error of its own for a CPU."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not _NO_MEMORY.search(str(error)):
                raise
            raise UsageError(
                f"batch: {self.job.batch} images of {self.network.name} do not fit in the "
                f"memory of the {self.job.device}; use a smaller one ({error!s:.200})"
            ) from error

    def _publish(
        self, stage: Stage, task: Task, output: Output, images: TaskImages
    ) -> tuple[File, ...]:
        tables = dict(output.tables)
        if images.expected:
            tables["outcomes"] = images.outcomes()
        files = [segments.write(self.storage, task, name, rows) for name, rows in tables.items()]
        for block in output.blocks:
            files.extend(arrays.write(self.storage, stage.placed(block)))
        return tuple(files)


class TaskContext:
    """What a worker lends to an analysis for one task."""

    def __init__(self, worker: Worker, stage: Stage, task: Task) -> None:
        self._worker, self._stage, self._task = worker, stage, task
        self.images = TaskImages(task, worker.storage, worker.job, worker.network.preprocessing)
        self.warnings: list[str] = []

    @property
    def network(self) -> Network:
        return self._worker.network

    def batches(self) -> Iterator[Batch]:
        return self.images.batches()

    def quarantine(self, image: Image, reason: Reason) -> None:
        self.images.quarantine(image, reason)

    def read(self, kind: str, array: str, start: int, stop: int) -> Any:
        name = self._stage.needs[kind]
        return arrays.read(self._worker.storage, array_path(array, kind, name), start, stop)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def index(self) -> Columns:
        if not isinstance(self._task.images, Shard):
            raise TypeError(f"{self._task} reads no shard that could be indexed")
        return collection.index(self._task.images, self.warn)


def load_network(job: ResolvedJob, device: str) -> Network:
    """The network that a job names, its weights brought here if they are a URL."""
    weights = job.weights
    if weights is not None and "://" in weights:
        weights = files.local_copy(weights)
    return models.load(job.model, weights, device)


def _device_name(device: str) -> str:
    """The class of device that promises equal bytes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
