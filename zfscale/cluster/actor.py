"""What runs inside a worker process: a worker behind the two calls that the pool makes.

Knows how a worker is made and asked; not that there are attempts, time limits or other workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zfscale.errors import ZfscaleError
from zfscale.records import Receipt, Task

if TYPE_CHECKING:
    from zfscale.engine.worker import Setup


class WorkerLike(Protocol):
    """What carries out tasks; `zfscale.engine.worker.Worker` is the real one."""

    def run(self, task: Task) -> Receipt: ...


Factory = Callable[["Setup"], WorkerLike]
"""Makes a worker in its process, with its model loaded: `RayPool` calls no other method first."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself once it has started.

    `device_name` is the model of its GPU, or the instruction set of its CPU; empty for a worker
    that has no attribute of this name.
    """

    device_name: str = ""


class WorkerActor:
    """The Ray actor: one per worker process.

    A ZfscaleError is returned, not raised: Ray would wrap it into an exception of its own, and
    another attempt would meet the same error.
    """

    def start(self, factory: Factory, setup: Setup) -> WorkerInfo | ZfscaleError:
        """Make the worker and load its model; called once, before any task.

        The pool waits for the answer before it hands out a task, so that the time limit of a task
        covers its own work alone.
        """
        try:
            self._worker = factory(setup)
        except ZfscaleError as error:
            return error
        return WorkerInfo(getattr(self._worker, "device_name", ""))

    def run(self, task: Task) -> Receipt | ZfscaleError:
        """Carry out one task."""
        try:
            return self._worker.run(task)
        except ZfscaleError as error:
            return error


def load_worker(setup: Setup) -> WorkerLike:
    """Make the real worker. Imported where it runs, because its libraries take long to load."""
    from zfscale.engine.worker import Worker

    return Worker(setup)
