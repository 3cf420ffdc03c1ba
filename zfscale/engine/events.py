"""What a running job tells: frozen events from the driver, in order, to whoever shows them.

Knows the records; not how an event is shown (progress.py) nor when one happens (driver.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from zfscale.records import Counts


class Level(StrEnum):
    """How loud a note is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class StageBegun:
    """A pass of an analysis starts on `tasks` tasks with `images` images in all.

    A stage that is planned again begins again, with the tasks that are new.
    """

    stage: str
    tasks: int
    images: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """So far in this stage: totals since its `StageBegun`, `seconds` after it.

    `counts` covers the finished tasks alone.
    """

    stage: str
    tasks_done: int
    images_done: int
    counts: Counts
    seconds: float


@dataclass(frozen=True, slots=True)
class StageDone:
    """All tasks of the stage are committed and its tables are published."""

    stage: str
    seconds: float
    counts: Counts


@dataclass(frozen=True, slots=True)
class Note:
    """Something a reader should know, in one sentence."""

    text: str
    level: Level = Level.INFO


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job ended. `counts` are the images of the run, each counted once.

    `top1` and `top5` are error rates in 0..1 over the labelled images, None without labels.
    """

    run: str
    counts: Counts
    seconds: float
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a job that came to its end."""

    summary: Summary


Event = StageBegun | Progressed | StageDone | Note | Finished
Report = Callable[[Event], None]
"""Receives every event; must return quickly and must not raise."""
