"""One worker process, and the tasks it has been handed but has not answered.

Knows the life of this process; not which task comes next, nor who else works.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from zfscale.records import Task

IN_FLIGHT = 2
"""Tasks per process: the next one is there when one ends, and little is lost with a process."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A task and how often it was tried, this time included.

    One that was in flight when something went wrong goes `alone` from then on: whatever
    happens next was its own doing.
    """

    task: Task
    number: int = 1
    alone: bool = False


class Lane:
    """A worker process with a short queue of references to its answers, oldest first."""

    def __init__(self, actor: Any, starting: Any) -> None:
        self.actor = actor
        self._starting = starting
        self._flight: deque[tuple[Any, Attempt]] = deque()
        self._since = time.monotonic()

    @property
    def started(self) -> bool:
        """Whether the process has loaded its model and takes tasks."""
        return self._starting is None

    @property
    def load(self) -> int:
        """Tasks handed out and unanswered."""
        return len(self._flight)

    @property
    def awaited(self) -> Any | None:
        """What comes next: the process itself, its oldest task, or nothing."""
        if self._starting is not None:
            return self._starting
        return self._flight[0][0] if self._flight else None

    @property
    def seconds(self) -> float:
        """How long what is awaited can have been running; 0 where there is nothing."""
        return 0.0 if self.awaited is None else time.monotonic() - self._since

    def ready(self) -> None:
        """The process has started."""
        self._starting = None

    def accepts(self, attempt: Attempt) -> bool:
        """Whether this task may be queued here now."""
        if not self.started or not self._flight:
            return self.started
        return self.load < IN_FLIGHT and not attempt.alone and not self._flight[0][1].alone

    def hand(self, attempt: Attempt) -> None:
        """Queue a task. A process runs its tasks in order, one at a time."""
        if not self._flight:
            self._since = time.monotonic()
        self._flight.append((self.actor.run.remote(attempt.task), attempt))

    def pop(self) -> None:
        """The oldest task has been answered, and the next one runs."""
        self._flight.popleft()
        self._since = time.monotonic()

    def unanswered(self) -> list[Attempt]:
        """The tasks that the process still has, the running one first."""
        return [attempt for _, attempt in self._flight]
