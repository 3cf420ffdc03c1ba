"""An executor over Ray: worker processes with two tasks in flight each; every task is answered.

Knows processes, attempts and time limits; not what a task computes nor what its receipt means.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zfscale.cluster.actor import Factory, WorkerActor, load_worker
from zfscale.cluster.handle import Attempt, WorkerHandle
from zfscale.cluster.resources import alive_nodes, count_workers, format_nodes, format_resources
from zfscale.cluster.session import session
from zfscale.errors import TaskFailed, UsageError, ZfscaleError
from zfscale.records import Failure, Receipt, Task

if TYPE_CHECKING:
    from zfscale.engine.resolve import ResolvedJob

log = logging.getLogger(__name__)

EQUAL_FAILURES = 3
"""Tasks that have to fail with one error, before any has succeeded, for a stage to be stopped."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often and how long the pool tries. Times are in seconds.

    A task is given up after `attempts`, each of which may take `task_timeout`. A worker that has
    not started after `start_notice` is worth a warning; `start_limit` without any started worker
    ends the job: machines that start on demand take minutes. `poll` is how often the pool looks
    at the clock while no task ends.
    """

    attempts: int = 3
    task_timeout: float = 3600.0
    start_notice: float = 30.0
    start_limit: float = 1200.0
    poll: float = 1.0


class RayPool:
    """Workers on an embedded Ray (`address` None) or on a cluster. An `Executor`.

    Whatever happens to a process, each task is answered: by its receipt, or by a Failure once
    it has used up its attempts. The death of the process, an exception, and running longer than
    `limits.task_timeout` each cost one attempt, and the process. Other tasks that the process
    held are tried again without being charged. A ZfscaleError would be the same on every
    attempt, so `execute` raises it. If all that is tried first fails with the same error,
    `execute` raises TaskFailed instead of trying the remaining tasks.

    A worker first loads its model, and takes tasks from then on. Workers that find no room wait
    for it while others work. If there has been no started worker for `limits.start_limit`
    seconds, `execute` raises a ZfscaleError that says what each worker needs.
    """

    def __init__(
        self,
        job: ResolvedJob,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float | None = None,
        limits: Limits | None = None,
        factory: Factory = load_worker,
    ) -> None:
        """`workers` None is as many as fit now, of `job.threads_per_worker` cores and a GPU each.

        `gpus_per_worker` None is one where the device of `job` is cuda, else none. Raises
        UsageError if embedded Ray has no room for a worker: no node will be added to it.
        """
        if gpus_per_worker is None:
            gpus_per_worker = 1 if job.device == "cuda" else 0
        self._limits = limits or Limits()
        self._start_notice_given = False
        self._workers: list[WorkerHandle] = []
        self._failed_starts = 0
        self._per_worker = {"CPU": job.threads_per_worker, "GPU": gpus_per_worker}
        with ExitStack() as stack:
            # Whatever raises in this block, the session is closed.
            cpus = (workers or 1) * job.threads_per_worker
            self._ray = stack.enter_context(session(address, at_least_cpus=cpus))
            room = count_workers(alive_nodes(self._ray), self._per_worker)
            if address is None and not room:
                raise UsageError(
                    f"device: {job.device}: there is no room for a worker: {self._room()}"
                )
            self._worker_count = workers or max(1, room)
            actor_class = self._ray.remote(
                num_cpus=job.threads_per_worker,
                num_gpus=gpus_per_worker,
                # A process that died is replaced, not restarted: what it held is put back here.
                max_restarts=0,
                max_task_retries=0,
            )(WorkerActor)
            self._session = stack.pop_all()

        def start_worker() -> WorkerHandle:
            actor = actor_class.remote()
            return WorkerHandle(actor, actor.start.remote(factory, job))

        self._start_worker = start_worker

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        """Yield one receipt or failure per task as they come. `tasks` is read as it is needed."""
        queue = _TaskQueue(tasks)
        first_failures = _FirstFailures()
        self._last_served = time.monotonic()
        try:
            while queue or any(worker.task_count for worker in self._workers):
                self._hand_out(queue)
                yield from self._collect_answers(queue, first_failures)
                self._check_starts()
        finally:
            self._end([worker for worker in self._workers if worker.task_count])

    def close(self) -> None:
        """End all processes, and Ray itself where it is embedded."""
        self._end(self._workers)
        self._session.close()

    def _end(self, workers: list[WorkerHandle]) -> None:
        for worker in workers:
            self._ray.kill(worker.actor)
        self._workers = [worker for worker in self._workers if worker not in workers]

    def _hand_out(self, queue: _TaskQueue) -> None:
        """Start the workers that are missing, and spread tasks evenly over those that started."""
        while len(self._workers) < self._worker_count:
            self._workers.append(self._start_worker())
        while queue:
            accepting = [worker for worker in self._workers if worker.accepts(queue.first)]
            if not accepting:
                return
            min(accepting, key=lambda worker: worker.task_count).submit(queue.take())

    def _collect_answers(
        self, queue: _TaskQueue, first_failures: _FirstFailures
    ) -> Iterator[Receipt | Failure]:
        """Wait a moment, then handle each worker that has answered or ran out of time."""
        waiting = {
            worker.next_answer: worker for worker in self._workers if worker.next_answer is not None
        }
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=self._limits.poll)
        errors: list[tuple[WorkerHandle, str]] = []
        for reference in ready:
            worker = waiting.pop(reference)
            answer = self._get(reference)
            if isinstance(answer, _ProcessError):
                errors.append((worker, answer.reason))
            elif worker.started:
                worker.remove_oldest()
                first_failures.stop_watching()
                yield answer
            else:
                worker.started = True
                self._failed_starts = 0
        limit = self._limits.task_timeout
        errors.extend(
            (worker, f"ran longer than {limit:g} s")
            for worker in waiting.values()
            if worker.started and worker.seconds_waited > limit
        )
        for worker, reason in errors:
            yield from self._fail(worker, reason, queue, first_failures)

    def _get(self, reference: Any) -> Any:
        """The answer behind a reference. Raises the ZfscaleError that a worker returned."""
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            return _ProcessError(f"{type(error.cause).__name__}: {error.cause}")
        except exceptions.RayError as error:
            last_line = str(error).strip().splitlines()[-1]
            return _ProcessError(f"the worker process died: {last_line}")
        if isinstance(answer, ZfscaleError):
            raise answer
        return answer

    def _fail(
        self, worker: WorkerHandle, reason: str, queue: _TaskQueue, first_failures: _FirstFailures
    ) -> Iterator[Failure]:
        """Charge the task that was running, put back the others, and do without the process."""
        running_tasks = [w.unanswered()[0].task.id for w in self._workers if w.task_count]
        self._end([worker])
        limit = self._limits.attempts
        if not worker.started:
            self._failed_starts += 1
            if self._failed_starts >= limit * self._worker_count:
                raise ZfscaleError(f"no worker can be started: {reason}")
            return
        running, *queued = worker.unanswered()
        queue.put_back(replace(attempt, alone=True) for attempt in queued)
        log.warning("%s, attempt %d: %s", running.task.id, running.number, reason)
        if running.number < limit:
            queue.put_back([replace(running, number=running.number + 1, alone=True)])
        first_failures.add(running.task.id, reason, running_tasks, queue.total)
        if running.number >= limit:
            yield Failure(running.task.id, reason, running.number)

    def _check_starts(self) -> None:
        """Warn once of workers that do not start; give up if for long none has been started."""
        starting = [worker for worker in self._workers if not worker.started]
        if len(starting) < len(self._workers):
            self._last_served = time.monotonic()
        seconds = time.monotonic() - self._last_served
        if seconds > self._limits.start_limit:
            raise ZfscaleError(
                f"no worker has started for {seconds:.0f} s: {self._room()}; add such a node, or "
                "set device and workers to what is there"
            )
        late = any(worker.seconds_waited > self._limits.start_notice for worker in starting)
        if late and not self._start_notice_given:
            self._start_notice_given = True
            log.warning(
                "waiting for %d of %d workers to find room and load the model: %s",
                *(len(starting), len(self._workers), self._room()),
            )

    def _room(self) -> str:
        nodes, free = alive_nodes(self._ray), self._ray.available_resources()
        return (
            f"each worker needs {format_resources(self._per_worker)} on one node, and Ray has "
            f"{format_nodes(nodes)}, of which {format_resources(free)} in all are free"
        )


@dataclass(frozen=True, slots=True)
class _ProcessError:
    """Why a process gave no answer: its exception, or how it died."""

    reason: str


class _TaskQueue:
    """Tasks to hand out: those that come back before those that were never tried.

    False when it is empty. Reads one task ahead at most. `total` is the number of tasks that were
    read, None until all of them were.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.total: int | None = None
        self._untried = iter(tasks)
        self._read = 0
        self._next: deque[Attempt] = deque()

    def __bool__(self) -> bool:
        if not self._next and self.total is None:
            task = next(self._untried, None)
            if task is None:
                self.total = self._read
            else:
                self._read += 1
                self._next.append(Attempt(task))
        return bool(self._next)

    @property
    def first(self) -> Attempt:
        """What `take` gives next. Ask first whether there is one."""
        return self._next[0]

    def take(self) -> Attempt:
        """The next task to hand out. Ask first whether there is one."""
        return self._next.popleft()

    def put_back(self, attempts: Iterable[Attempt]) -> None:
        """Hand these out again."""
        self._next.extend(attempts)


class _FirstFailures:
    """Watches the first failures of a stage, and stops it if they are all the same.

    A missing library or a wrong setting fails every task in the same way: three attempts at each
    of a thousand tasks would say it no better. Nothing is decided here once a task has succeeded
    or two errors differ.
    """

    def __init__(self) -> None:
        self._watching = True
        self._running_at_first: set[str] = set()
        self._errors: list[tuple[str, str]] = []

    def stop_watching(self) -> None:
        """A task has succeeded: from now on each is judged by itself."""
        self._watching = False

    def add(self, task: str, error: str, running: Iterable[str], total: int | None) -> None:
        """An attempt has failed while the tasks `running` (this one included) were under way.

        `total` is the number of tasks of the stage, None while it is not known. Raises TaskFailed
        once EQUAL_FAILURES tasks have failed, or all where there are fewer, in at least as many
        attempts; and with them each task that was running when the first one failed: one broken
        machine among good ones fails many tasks while the first of the others still run.
        """
        if not self._errors:
            self._running_at_first = set(running)
        self._errors.append((task, error))
        failed = {name for name, _ in self._errors}
        self._watching = self._watching and error == self._errors[0][1]
        enough_tasks = len(failed) >= EQUAL_FAILURES or (len(failed) == total and total > 1)
        enough_attempts = len(self._errors) >= EQUAL_FAILURES
        if self._watching and enough_tasks and enough_attempts and failed >= self._running_at_first:
            raise TaskFailed(
                f"the first {len(self._errors)} attempts, at {len(failed)} tasks, all failed with "
                f"the same error, and no task has succeeded; the other tasks were not tried: "
                f"{error}; remove its cause and give the same command again"
            )
