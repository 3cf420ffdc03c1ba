"""An executor over Ray: one process per worker, two tasks in flight each, every task answered.

Knows processes, attempts and time limits; not what a task computes nor what its receipt means.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zfscale.cluster.actor import Factory, Host, load_worker
from zfscale.cluster.handle import Attempt, Lane
from zfscale.cluster.resources import fitting, inventory, nodes, words
from zfscale.cluster.session import session
from zfscale.errors import UsageError, ZfscaleError
from zfscale.records import Failure, Receipt, Task

if TYPE_CHECKING:
    from zfscale.engine.worker import Setup

log = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between looks at the clock while no task ends."""
START_NOTICE = 30.0
"""Seconds after which a worker that has not started is worth a warning."""
START_LIMIT = 1200.0
"""Seconds without any started worker: machines that start on demand take minutes."""


class RayPool:
    """Workers on an embedded Ray (`address` None) or on a cluster. An `Executor`.

    Whatever happens to a process, each task is answered: by its receipt, or by a Failure once
    it has used up its `attempts`. A death of the process, an exception, and running longer
    than `task_timeout` seconds cost one attempt each, and the process. What else the process
    had in flight is not charged. A ZfscaleError is the same on every attempt: it ends `execute`
    as itself.

    Workers that find no room wait for it while others work. If for `START_LIMIT` seconds there
    is none at all, `execute` raises a ZfscaleError that says what each needs.
    """

    def __init__(
        self,
        setup: Setup,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float | None = None,
        attempts: int = 3,
        task_timeout: float = 3600,
        factory: Factory = load_worker,
    ) -> None:
        """`workers` None is as many as fit now: `setup.threads` cores each, and their GPUs.

        `gpus_per_worker` None is one where the device of `setup` is cuda, else none. Raises
        UsageError where embedded Ray has no room for any: nothing will be added to it.
        """
        if gpus_per_worker is None:
            gpus_per_worker = 1 if setup.device == "cuda" else 0
        self._attempts = attempts
        self._task_timeout = task_timeout
        self._notice_due = True
        self._lanes: list[Lane] = []
        self._failed_starts = 0
        self._open = ExitStack()
        cpus = (workers or 1) * setup.threads
        self._ray = self._open.enter_context(session(address, at_least_cpus=cpus))
        self._need = {"CPU": setup.threads, "GPU": gpus_per_worker}
        room = fitting(nodes(self._ray), self._need)
        if address is None and not room:
            lacking = self._lacking()
            self.close()
            raise UsageError(f"device: {setup.device}: a worker does not fit: {lacking}")
        self._workers = workers or max(1, room)
        host = self._ray.remote(
            num_cpus=setup.threads,
            num_gpus=gpus_per_worker,
            # A dead process is replaced, not revived: its successor knows nothing of it.
            max_restarts=0,
            max_task_retries=0,
        )(Host)

        def begin() -> tuple[Any, Any]:
            actor = host.remote()
            return actor, actor.start.remote(factory, setup)

        self._begin = begin

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        """Yield one receipt or failure per task as they come. `tasks` is read as it is needed."""
        backlog = _Backlog(tasks)
        self._served = time.monotonic()
        try:
            while backlog or any(lane.load for lane in self._lanes):
                self._hand_out(backlog)
                yield from self._answers(backlog)
                self._watch_starts()
        finally:
            self._drop([lane for lane in self._lanes if lane.load])

    def close(self) -> None:
        """End all processes, and Ray itself where it is embedded."""
        self._drop(self._lanes)
        self._open.close()

    def _drop(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            self._ray.kill(lane.actor)
        self._lanes = [lane for lane in self._lanes if lane not in lanes]

    def _hand_out(self, backlog: _Backlog) -> None:
        """See that all workers are there, and fill them evenly."""
        while len(self._lanes) < self._workers:
            self._lanes.append(Lane(*self._begin()))
        while backlog:
            accepting = [lane for lane in self._lanes if lane.accepts(backlog.first)]
            if not accepting:
                return
            min(accepting, key=lambda lane: lane.load).hand(backlog.take())

    def _answers(self, backlog: _Backlog) -> Iterator[Receipt | Failure]:
        """Wait a moment; then settle each lane whose oldest task ended or ran out of time."""
        awaited = {lane.awaited: lane for lane in self._lanes if lane.awaited is not None}
        ready, _ = self._ray.wait(list(awaited), num_returns=1, timeout=POLL)
        for reference in ready:
            yield from self._settle(awaited.pop(reference), backlog)
        for lane in awaited.values():
            if lane.started and lane.seconds > self._task_timeout:
                reason = f"ran longer than {self._task_timeout:g} s"
                yield from self._failed(lane, reason, backlog)

    def _watch_starts(self) -> None:
        """Warn once of workers that do not start; give up where for long there has been none."""
        starting = [lane for lane in self._lanes if not lane.started]
        if len(starting) < len(self._lanes):
            self._served = time.monotonic()
        waited = time.monotonic() - self._served
        if waited > START_LIMIT:
            raise ZfscaleError(
                f"no worker could start for {waited:.0f} s: {self._lacking()}; add such a node, or "
                "set device and workers to what is there"
            )
        if self._notice_due and any(lane.seconds > START_NOTICE for lane in starting):
            self._notice_due = False
            log.warning(
                "waiting for %d of %d workers: %s",
                *(len(starting), len(self._lanes), self._lacking()),
            )

    def _lacking(self) -> str:
        found, free = nodes(self._ray), self._ray.available_resources()
        return (
            f"each needs {words(self._need)} on one node, and Ray has {inventory(found)}, "
            f"of which {words(free)} in all are free"
        )

    def _settle(self, lane: Lane, backlog: _Backlog) -> Iterator[Receipt | Failure]:
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(lane.awaited)
        except exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {error.cause}"
            yield from self._failed(lane, reason, backlog)
            return
        except exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            yield from self._failed(lane, f"the worker process died: {reason}", backlog)
            return
        if isinstance(answer, ZfscaleError):
            raise answer
        if lane.started:
            lane.pop()
            yield answer
        else:
            lane.ready()
            self._failed_starts = 0

    def _failed(self, lane: Lane, reason: str, backlog: _Backlog) -> Iterator[Failure]:
        """Charge the task that was running, put back the others, and do without the process."""
        self._drop([lane])
        if not lane.started:
            self._failed_starts += 1
            if self._failed_starts >= self._attempts * self._workers:
                raise ZfscaleError(f"no worker can be started: {reason}")
            return
        tried, *queued = lane.unanswered()
        backlog.put_back(replace(each, alone=True) for each in queued)
        log.warning("%s, attempt %d: %s", tried.task.id, tried.number, reason)
        if tried.number < self._attempts:
            backlog.put_back([replace(tried, number=tried.number + 1, alone=True)])
        else:
            yield Failure(tried.task.id, reason, tried.number)


class _Backlog:
    """Tasks to hand out: those that come back before those that were never tried.

    False when it is empty. Reads one task ahead at most.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._fresh = (Attempt(task) for task in tasks)
        self._next: deque[Attempt] = deque()

    def __bool__(self) -> bool:
        if not self._next:
            self._next.extend(attempt for attempt in [next(self._fresh, None)] if attempt)
        return bool(self._next)

    @property
    def first(self) -> Attempt:
        """What `take` gives next."""
        return self._next[0]

    def take(self) -> Attempt:
        """The next task to hand out. Ask first whether there is one."""
        return self._next.popleft()

    def put_back(self, attempts: Iterable[Attempt]) -> None:
        """Hand these out again."""
        self._next.extend(attempts)
