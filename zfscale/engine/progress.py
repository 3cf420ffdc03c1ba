"""Shows the events of a job: a live line on a terminal, JSON lines anywhere else.

Knows how events are shown; not what they mean for the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from tqdm import tqdm

from zfscale.engine.events import Event, Finished, Note, Progressed, Report, StageBegun, StageDone

EVERY = 5.0
"""Seconds between two JSON lines on the progress of a stage."""


@contextmanager
def shown(stream: TextIO, as_json: bool = False) -> Iterator[Report]:
    """Give what shows events on `stream`: lines of JSON if asked for, or if nobody watches."""
    if as_json or not stream.isatty():
        yield JsonLines(stream)
        return
    line = LiveLine(stream)
    try:
        yield line
    finally:
        line.close()


class JsonLines:
    """One JSON object a line: `time` (UTC, ISO 8601), `event`, and the fields of the event.

    Progress comes at most every `EVERY` seconds, everything else at once. It says besides of how
    many `images`, at how many `images_per_second` so far, and the `seconds_left` at this rate;
    both are null where there is no rate yet, the former also where tasks read no images.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next = 0.0
        self._begun = StageBegun("", 0, 0)

    def __call__(self, event: Event) -> None:
        """Write the event, or leave it out if it is too soon for it."""
        if isinstance(event, Progressed):
            if self._clock() < self._next:
                return
            self._next = self._clock() + EVERY
        if isinstance(event, StageBegun):
            self._begun = event
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "event": type(event).__name__} | asdict(event)
        if isinstance(event, Progressed):
            record |= _pace(event, self._begun)
        print(json.dumps(record), file=self._stream, flush=True)


class LiveLine:
    """One line that is drawn over: stage, images (or tasks) done, rate, time left, quarantined."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._counts_images = True

    def __call__(self, event: Event) -> None:
        """Draw the event: progress on the line, everything else above it."""
        match event:
            case StageBegun(stage, tasks, images):
                self.close()
                of_images = f"{_number(images, 'image')} in " if images else ""
                self._say(f"{stage}: {of_images}{_number(tasks, 'task')}")
                self._counts_images = bool(images)
                self._bar = tqdm(
                    total=images or tasks, unit=" images" if images else " tasks", desc=stage,
                    file=self._stream, leave=False, dynamic_ncols=True, mininterval=0.2,
                    smoothing=0.1,
                )  # fmt: skip
            case Progressed(counts=counts) if self._bar is not None:
                done = event.images_done if self._counts_images else event.tasks_done
                self._bar.set_postfix_str(f"{counts.quarantined} quarantined", refresh=False)
                self._bar.update(done - self._bar.n)
            case StageDone(stage, seconds, counts):
                self.close()
                self._say(f"{stage}: done in {duration(seconds)}, {counts.quarantined} quarantined")
            case Note(text, level):
                self._say(f"{level}: {text}")
            case Finished():
                self.close()

    def close(self) -> None:
        """Take the line away, so that what follows starts on a clean one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, text: str) -> None:
        tqdm.write(text, file=self._stream)


def _pace(event: Progressed, begun: StageBegun) -> dict[str, float | None]:
    """What a reader would work out from the progress of a stage."""
    rate = left = None
    done, of = event.images_done, begun.images
    if not of:  # tasks that read no images
        done, of = event.tasks_done, begun.tasks
    if done and event.seconds:
        left = round((of - done) * event.seconds / done, 1)
        rate = round(done / event.seconds, 3) if begun.images else None
    return {"images": begun.images, "images_per_second": rate, "seconds_left": left}


def duration(seconds: float) -> str:
    """Seconds in words: 8.2 s, 4 min 10 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
