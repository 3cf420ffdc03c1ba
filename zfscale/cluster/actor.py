"""What runs inside a worker process: a worker behind the two calls that the pool makes.

Knows how a worker is made and asked; not that there are attempts, time limits or other workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from zfscale.convnet.runtime import before_torch
from zfscale.errors import ZfscaleError
from zfscale.records import Receipt, Task

if TYPE_CHECKING:
    from zfscale.engine.resolve import ResolvedJob


class WorkerLike(Protocol):
    """What carries out tasks; `zfscale.engine.worker.Worker` is the real one."""

    def run(self, task: Task) -> Receipt: ...


Factory = Callable[["ResolvedJob"], WorkerLike]
"""Makes a worker in its process, with its model loaded: `RayPool` calls no other method first."""


class WorkerActor:
    """The Ray actor: one per worker process.

    A ZfscaleError is returned, not raised: Ray would wrap it into an exception of its own, and
    another attempt would meet the same error.
    """

    def __init__(self) -> None:
        # Here, not in `start`: to unpickle its arguments loads torch.
        before_torch()

    def start(self, factory: Factory, job: ResolvedJob) -> ZfscaleError | None:
        """Make the worker and load its model; called once, before any task.

        The pool waits for the answer before it hands out a task, so that the time limit of a task
        covers its own work alone.
        """
        try:
            self._worker = factory(job)
        except ZfscaleError as error:
            return error
        return None

    def run(self, task: Task) -> Receipt | ZfscaleError:
        """Carry out one task."""
        try:
            return self._worker.run(task)
        except ZfscaleError as error:
            return error


def load_worker(job: ResolvedJob) -> WorkerLike:
    """Make the real worker. Imported where it runs, because its libraries take long to load."""
    from zfscale.engine.worker import Worker

    return Worker(job)
