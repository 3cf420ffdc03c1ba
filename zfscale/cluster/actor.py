"""What runs inside a worker process: a worker behind the two calls that the pool makes.

Knows how a worker is made and asked; not that there are attempts, time limits or others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from zfscale.convnet.runtime import before_torch
from zfscale.errors import ZfscaleError
from zfscale.records import Receipt, Task

if TYPE_CHECKING:
    from zfscale.engine.worker import Setup


class WorkerLike(Protocol):
    """What carries out tasks; `zfscale.engine.worker.Worker` is the real one."""

    def run(self, task: Task) -> Receipt: ...


Factory = Callable[["Setup"], WorkerLike]


class Host:
    """The Ray actor.

    An error with a message for the user is returned rather than raised: Ray would wrap it
    into one of its own, and it is the same on every attempt.
    """

    def __init__(self) -> None:
        # Here, not in `start`: to unpickle its arguments loads torch.
        before_torch()

    def start(self, factory: Factory, setup: Setup) -> ZfscaleError | None:
        """Make the worker, once in the life of the process."""
        try:
            self._worker = factory(setup)
        except ZfscaleError as error:
            return error
        return None

    def run(self, task: Task) -> Receipt | ZfscaleError:
        """Carry out one task."""
        try:
            return self._worker.run(task)
        except ZfscaleError as error:
            return error


def load_worker(setup: Setup) -> WorkerLike:
    """The real worker. Imported where it runs: its libraries are heavy."""
    from zfscale.engine.worker import Worker

    return Worker(setup)
