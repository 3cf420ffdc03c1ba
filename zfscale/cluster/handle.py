"""The driver's side of one worker process, and the tasks that it holds but has not answered.

Knows the life of this process; not which task comes next, nor which other processes there are.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from zfscale.records import Task

TASKS_IN_FLIGHT = 2
"""Tasks that a process holds: the next one is there when one ends, and a process that dies
takes few with it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A task and how often it has been tried, this attempt included.

    A task that was in a process when something went wrong runs `alone` from then on: with no
    other task in the process, it is clear which one caused the next failure.
    """

    task: Task
    number: int = 1
    alone: bool = False


class WorkerHandle:
    """A worker process with a short queue of references to its answers, oldest first.

    The process has started once it has loaded its model; until then it takes no task, and no
    time limit of a task runs.
    """

    def __init__(self, actor: Any, start_reference: Any) -> None:
        """`actor` is a handle of Ray; `start_reference` stands for the answer of its `start`."""
        self.actor = actor
        self.started = False
        """Whether the process has loaded its model and takes tasks."""
        self._start_reference = start_reference
        self._in_flight: deque[tuple[Any, Attempt]] = deque()
        self._waiting_since = time.monotonic()

    @property
    def task_count(self) -> int:
        """Number of tasks handed out and not answered."""
        return len(self._in_flight)

    @property
    def next_answer(self) -> Any | None:
        """Reference to what the process answers next: its start, its oldest task, or nothing."""
        if not self.started:
            return self._start_reference
        return self._in_flight[0][0] if self._in_flight else None

    @property
    def seconds_waited(self) -> float:
        """How long `next_answer` can have been under way; 0 where there is nothing to wait for."""
        return 0.0 if self.next_answer is None else time.monotonic() - self._waiting_since

    def accepts(self, attempt: Attempt) -> bool:
        """Whether this task may be queued here now."""
        if not self.started or not self._in_flight:
            return self.started
        oldest = self._in_flight[0][1]
        return self.task_count < TASKS_IN_FLIGHT and not attempt.alone and not oldest.alone

    def submit(self, attempt: Attempt) -> None:
        """Queue a task. A process runs its tasks in order, one at a time."""
        if not self._in_flight:
            self._waiting_since = time.monotonic()
        self._in_flight.append((self.actor.run.remote(attempt.task), attempt))

    def remove_oldest(self) -> None:
        """The oldest task has been answered, and the next one runs."""
        self._in_flight.popleft()
        self._waiting_since = time.monotonic()

    def unanswered(self) -> list[Attempt]:
        """The tasks that the process still holds, the running one first."""
        return [attempt for _, attempt in self._in_flight]
