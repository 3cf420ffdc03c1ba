"""Progress is a live line for people and JSON lines for logs."""

from __future__ import annotations

import io
import json
from datetime import datetime

import pytest

from zfscale.engine.events import (
    Event,
    Finished,
    Level,
    Note,
    Progressed,
    StageBegun,
    StageDone,
    Summary,
)
from zfscale.engine.progress import EVERY, JsonLines, duration, shown
from zfscale.records import Counts

COUNTS = Counts(images=50, ok=47, quarantined=3)
EVENTS: tuple[Event, ...] = (
    StageBegun("scan", 4, 100),
    Progressed("scan", 2, 50, COUNTS, 2.0),
    Note("the disk is slow", Level.WARNING),
    StageDone("scan", 75.0, COUNTS),
    Finished(Summary("runs/x", COUNTS, 80.0)),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_json_object_a_line() -> None:
    stream = io.StringIO()
    with shown(stream) as report:
        for event in EVENTS:
            report(event)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["event"] for record in records] == [type(event).__name__ for event in EVENTS]
    assert records[0] | {"time": ""} == {
        "time": "", "event": "StageBegun", "stage": "scan", "tasks": 4, "images": 100,
    }  # fmt: skip
    assert records[1]["counts"]["quarantined"] == 3
    pace = {key: records[1][key] for key in ("images", "images_per_second", "seconds_left")}
    assert pace == {"images": 100, "images_per_second": 25.0, "seconds_left": 2.0}
    assert records[-1]["summary"]["run"] == "runs/x"
    assert all(datetime.fromisoformat(record["time"]).tzinfo for record in records)


def test_each_stage_has_a_pace_of_its_own_and_none_before_its_first_image() -> None:
    stream = io.StringIO()
    report = JsonLines(stream, clock=iter(range(0, 1000, 50)).__next__)
    stages = [("scan", 100, 90, 9.0), ("switches", 8, 0, 0.5)]
    stages += [("deconvolve", 40, 4, 0.0), ("deconvolve", 30, 30, 2.0)]
    for stage, images, done, seconds in stages:
        report(StageBegun(stage, 4, images))
        report(Progressed(stage, 1, done, COUNTS, seconds))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()][1::2]
    found = [(line["images"], line["images_per_second"], line["seconds_left"]) for line in lines]
    assert found == [(100, 10.0, 1.0), (8, None, None), (40, None, None), (30, 15.0, 0.0)]


def test_progress_in_a_log_is_rare_and_nothing_else_is_left_out() -> None:
    stream = io.StringIO()
    now = 100.0
    report = JsonLines(stream, clock=lambda: now)
    for tenth in range(int(3 * EVERY * 10)):
        now = 100.0 + tenth / 10
        report(Progressed("scan", tenth, tenth, COUNTS, tenth / 10))
        if tenth % 10 == 0:
            report(Note("still here"))
    kinds = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert kinds.count("Progressed") == 3
    assert kinds.count("Note") == 3 * EVERY


def test_a_terminal_gets_a_line_with_rate_and_quarantine() -> None:
    stream = Terminal()
    with shown(stream) as report:
        for event in EVENTS[:2]:
            report(event)
        report(Progressed("scan", 4, 100, Counts(100, 97, 3), 2.0))
        report(EVENTS[2])
        drawn = stream.getvalue()
        report(EVENTS[3])
    assert "scan: 100 images in 4 tasks" in drawn
    assert "100/100" in drawn
    assert "3 quarantined" in drawn
    assert "images/s" in drawn
    assert "warning: the disk is slow" in drawn
    assert stream.getvalue().endswith("scan: done in 1 min 15 s, 3 quarantined\n")


def test_tasks_that_read_no_images_are_counted_as_tasks() -> None:
    stream = Terminal()
    with shown(stream) as report:
        report(StageBegun("index", 5, 0))
        report(Progressed("index", 5, 0, Counts(), 2.0))
        drawn = stream.getvalue()
    assert "index: 5 tasks" in drawn
    assert "tasks/s" in drawn
    assert "image" not in drawn
    log = io.StringIO()
    with shown(log) as report:
        report(StageBegun("index", 5, 0))
        report(Progressed("index", 2, 0, Counts(), 2.0))
    last = json.loads(log.getvalue().splitlines()[-1])
    assert (last["images_per_second"], last["seconds_left"]) == (None, 3.0)


def test_an_interrupt_leaves_a_clean_line() -> None:
    stream = Terminal()

    def work() -> None:
        with shown(stream) as report:
            report(EVENTS[0])
            report(EVENTS[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    # The bar is wiped: what follows starts at the left edge of an empty line.
    assert stream.getvalue().endswith("\r")
    assert stream.getvalue().rstrip("\r").rpartition("\r")[2].strip() == ""


def test_json_can_be_had_on_a_terminal() -> None:
    stream = Terminal()
    with shown(stream, as_json=True) as report:
        report(EVENTS[0])
    assert json.loads(stream.getvalue())["stage"] == "scan"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (119.6, "2 min 0 s"),
     (3599.7, "1 h 0 min"), (11_520, "3 h 12 min")],
)  # fmt: skip
def test_durations_read_like_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
