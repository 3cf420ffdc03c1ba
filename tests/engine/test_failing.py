"""Tasks that fail: what is said, what is committed, and how the same job goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tinyjobs
from tinyjobs import run

from zfscale.analyses.scan.analysis import Scan
from zfscale.cli import commands
from zfscale.cli.exit import exit_code
from zfscale.engine.events import Event, Level, Note
from zfscale.engine.worker import Serial
from zfscale.errors import TaskFailed
from zfscale.records import Failure
from zfscale.runs import manifest
from zfscale.runs.manifest import AnalysisState, State
from zfscale.storage import open_storage


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, object]:
    tinyjobs.write_shards(tmp_path / "shards")
    return tinyjobs.spec(tmp_path / "run", tmp_path / "shards", analyses={"scan": {"top_k": 3}})


def failing(fails: Callable[[int], bool]) -> type[Serial]:
    """An executor whose scan tasks fail by their number, as those of a pool do."""

    class Failing(Serial):
        def execute(self, tasks):
            for number, task in enumerate(tasks):
                if task.analysis == "scan" and fails(number):
                    yield Failure(task.id, "OSError: the disk is away", 3)
                else:
                    yield self._worker.run(task)

    return Failing


def state(keys: dict[str, object], name: str = "scan") -> AnalysisState:
    return manifest.load(open_storage(str(keys["run"]))).analyses[name]


def test_all_tasks_fail(spec) -> None:
    events: list[Event] = []
    with pytest.raises(TaskFailed) as failed:
        run(spec, failing(lambda number: True), events=events)
    message = str(failed.value)
    assert message.startswith("scan: 5 of 5 tasks failed, e.g. ")
    assert "after 3 attempts: OSError: the disk is away; none was finished, and " in message
    assert message.endswith("the same command tries again what failed")
    errors = [e.text for e in events if isinstance(e, Note) and e.level == Level.ERROR]
    assert len(errors) == 5
    found = state(spec)
    assert (found.state, found.error, found.tasks, found.results) == (
        State.FAILED, message, {}, None,
    )  # fmt: skip
    assert state(spec, "index").state == State.COMPLETE
    assert state(spec, "switches").state == State.PLANNED


def test_some_tasks_fail_and_the_same_job_tries_them_again(spec, tmp_path) -> None:
    clean = run({**spec, "run": str(tmp_path / "clean")})
    with pytest.raises(TaskFailed, match=r"scan: 2 of 5 tasks .*; the other 3 are committed, and"):
        run(spec, failing(lambda number: number in (1, 4)))
    assert len(state(spec).tasks) == 3
    again = tinyjobs.counting()
    assert run(spec, again) == clean
    assert [task.analysis for task in again.given] == ["scan", "scan", "switches"]
    assert (state(spec).state, state(spec).error) == (State.COMPLETE, None)


def test_a_mistake_in_a_task_is_one_line_without_a_traceback(
    spec, tmp_path, monkeypatch, capsys
) -> None:
    def broken(self, context, task):
        raise RuntimeError("the maps do not fit")

    monkeypatch.setattr(Scan, "run", broken)
    (tmp_path / "job.yaml").write_text(json.dumps(spec))
    command = ["run", str(tmp_path / "job.yaml"), "--serial"]
    assert exit_code(commands, command) == 4
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if not line.startswith("{")]
    assert out == ""
    assert len(told) == 1
    assert told[0].startswith("zfscale: scan task ")
    assert "failed: RuntimeError: the maps do not fit; what was finished before is " in told[0]
    assert told[0].endswith("`zfscale --debug run` shows where the error came from")
    assert state(spec).state == State.FAILED
    assert "the maps do not fit" in str(state(spec).error)

    assert exit_code(commands, ["--debug", *command]) == 4
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert 'raise RuntimeError("the maps do not fit")' in err


def test_short_memory_says_what_to_change(spec, monkeypatch) -> None:
    def short(self, context, task):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Scan, "run", short)
    with pytest.raises(Exception, match="batch: 4 images of tinyjobs:build do not fit in the mem"):
        run(spec)
    assert state(spec).state == State.FAILED


@pytest.mark.parametrize("ending", [KeyboardInterrupt, ZeroDivisionError])
def test_how_it_ended_is_recorded_and_the_error_stays(ending, spec, monkeypatch) -> None:
    """Also where planning or publishing ends it, on the driver."""

    def broken(self, view, tasks):
        raise ending("in publish")

    with monkeypatch.context() as patch:
        patch.setattr(Scan, "publish", broken)
        with pytest.raises(ending):
            run(spec)
    interrupted = ending is KeyboardInterrupt
    assert state(spec).state == (State.INTERRUPTED if interrupted else State.FAILED)
    assert state(spec).error == (None if interrupted else "in publish")
    run(spec)
    assert state(spec).state == State.COMPLETE
