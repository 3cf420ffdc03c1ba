"""The pool answers every task, whatever happens to the processes that carry them out."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zfscale.cluster.handle import TASKS_IN_FLIGHT
from zfscale.cluster.pool import Limits, RayPool, _FirstFailures
from zfscale.convnet.runtime import WAITING
from zfscale.errors import (
    IntegrityError,
    NonFiniteActivations,
    TaskFailed,
    UsageError,
    ZfscaleError,
)
from zfscale.records import Counts, Failure, Receipt, Task

pytestmark = pytest.mark.usefixtures("shared_ray")


def make_factory(folder: Path) -> Any:
    """A factory of workers that note each attempt as a file and act as the task says.

    Local classes travel to the worker processes by value: these cannot import the tests.
    """

    errors = {
        "raise": OSError("the disk is gone"),
        "fatal": NonFiniteActivations("the weights are to blame"),
        "integrity": IntegrityError("two results"),
    }

    starts = {"exit": lambda: os._exit(1), "slow": lambda: time.sleep(2)}

    class Worker:
        def __init__(self, setup: Any) -> None:
            if setup.start == "raise":
                raise UsageError("no such weights")
            starts.get(setup.start, int)()
            (folder / f"start-{os.getpid()}").touch()

        def run(self, task: Task) -> Receipt:
            name = task.payload["name"]
            before = len(list(folder.glob(f"try-{name}-*")))
            (folder / f"try-{name}-{before}-{os.getpid()}").touch()
            if before < task.payload.get("times", 99):
                self.act(task.payload.get("act"))
            time.sleep(task.payload.get("seconds", 0))
            return Receipt(task.id, (), Counts(1, 1), 0.0)

        def act(self, act: str | None) -> None:
            if act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if act == "hang":
                time.sleep(600)
            if act in errors:
                raise errors[act]

    return Worker


def task(name: str, **payload: Any) -> Task:
    return Task("dummy", payload={"name": name, **payload})


def tries(folder: Path, name: str) -> int:
    return len(list(folder.glob(f"try-{name}-*")))


def processes(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in folder.glob("start-*")}


@contextmanager
def pool(
    folder: Path, workers: int | None = 2, start: str = "", threads: int = 1,
    device: str = "cpu", **options: Any,
) -> Iterator[RayPool]:  # fmt: skip
    setup: Any = SimpleNamespace(device=device, threads_per_worker=threads, start=start)
    executor = RayPool(setup, workers, factory=make_factory(folder), **options)
    try:
        yield executor
    finally:
        executor.close()


def test_every_task_is_answered_once(tmp_path: Path) -> None:
    tasks = [task(str(number), seconds=0.05) for number in range(20)]
    with pool(tmp_path, workers=3) as executor:
        first = list(executor.execute(tasks))
        again = list(executor.execute(tasks[:3]))
        assert list(executor.execute([])) == []
    assert sorted(answer.task for answer in first) == sorted(each.id for each in tasks)
    assert {answer.task for answer in again} == {each.id for each in tasks[:3]}
    assert 1 <= len(processes(tmp_path)) <= 3  # the same processes served both calls


def test_a_process_is_told_how_to_wait_before_it_loads_torch(
    tmp_path: Path,
) -> None:
    class Worker:
        def __init__(self, setup: Any) -> None:
            told = os.environ.get("GOMP_SPINCOUNT")
            (tmp_path / "told").write_text(f"{told}, torch: {'torch' in sys.modules}")

        def run(self, task: Task) -> Receipt:
            return Receipt(task.id, (), Counts(1, 1), 0.0)

    job: Any = SimpleNamespace(device="cpu", threads_per_worker=1)
    executor = RayPool(job, 1, factory=Worker)
    try:
        list(executor.execute([task("any")]))
    finally:
        executor.close()
    assert (tmp_path / "told").read_text() == f"{WAITING['GOMP_SPINCOUNT']}, torch: False"


def test_tasks_are_read_as_they_are_needed_and_handed_out_before(tmp_path: Path) -> None:
    handed = 0

    def endless() -> Iterator[Task]:
        nonlocal handed
        while True:
            handed += 1
            yield task(str(handed), seconds=0.1)

    with pool(tmp_path, workers=1) as executor:
        answers = executor.execute(endless())
        for done in range(1, 6):
            assert isinstance(next(answers), Receipt)
            # The process has its next task before it ends one, and one is looked at ahead.
            assert done - 1 + TASKS_IN_FLIGHT <= handed <= done + TASKS_IN_FLIGHT + 1
        answers.close()


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    tasks = [task(str(number), seconds=0.1) for number in range(12)]
    with pool(tmp_path, workers=1) as executor:
        answers = executor.execute(tasks)
        got = [next(answers) for _ in range(4)]
        (victim,) = processes(tmp_path)
        os.kill(victim, signal.SIGKILL)
        got += answers
    assert sorted(answer.task for answer in got) == sorted(each.id for each in tasks)
    assert all(isinstance(answer, Receipt) for answer in got)
    assert len(processes(tmp_path)) == 2


def test_a_deadly_task_is_given_up_and_takes_no_other_with_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = [task(str(number)) for number in range(10)]
    deadly = task("deadly", act="kill")
    with pool(tmp_path, workers=1) as executor:
        answers = list(executor.execute([*good[:3], deadly, *good[3:]]))
    (failure,) = [answer for answer in answers if isinstance(answer, Failure)]
    assert failure.task == deadly.id
    assert failure.attempts == 3
    # Once more if it died before the answer of the task before it was out: that one is charged.
    assert tries(tmp_path, "deadly") in (3, 4)
    assert "died" in failure.error
    assert len(answers) == 11
    assert capfd.readouterr().out == ""


def test_an_exception_is_tried_again_and_reported(tmp_path: Path) -> None:
    good = task("good")
    passing = task("passing", act="raise", times=2)
    lasting = task("lasting", act="raise")
    with pool(tmp_path, workers=1) as executor:
        answers = {each.task: each for each in executor.execute([good, passing, lasting])}
    assert isinstance(answers[passing.id], Receipt)
    assert answers[lasting.id] == Failure(lasting.id, "OSError: the disk is gone", 3)


def test_a_stage_whose_first_tasks_all_fail_alike_is_stopped(tmp_path: Path) -> None:
    tasks = [task(str(number), act="raise") for number in range(20)]
    message = r"first 3 attempts, at 3 tasks, all failed .*: OSError: the disk is gone; remove"
    with pool(tmp_path, workers=1) as executor, pytest.raises(TaskFailed, match=message):
        list(executor.execute(tasks))
    assert len(list(tmp_path.glob("try-*"))) <= 4  # of 60; one more may have begun


def test_two_tasks_that_fail_alike_are_the_whole_stage(tmp_path: Path) -> None:
    tasks = [task(str(number), act="raise") for number in range(2)]
    alike = pytest.raises(TaskFailed, match="first 3 attempts, at 2 tasks")
    with pool(tmp_path, workers=1) as executor, alike:
        list(executor.execute(tasks))


def test_tasks_that_fail_alike_hold_up_none_that_succeeds(tmp_path: Path) -> None:
    bad = [task(f"bad{number}", act="raise") for number in range(3)]
    good = [task(str(number)) for number in range(4)]
    with pool(tmp_path, workers=1, limits=Limits(attempts=2)) as executor:
        # The first to fail is the first of all; the other two fail after others have succeeded.
        tasks = [bad[0], *good, *bad[1:]]
        answers = {each.task: each for each in executor.execute(tasks)}
    for each in bad:
        assert answers[each.id] == Failure(each.id, "OSError: the disk is gone", 2)
    assert all(isinstance(answers[each.id], Receipt) for each in good)


def test_a_single_task_has_all_its_attempts(tmp_path: Path) -> None:
    with pool(tmp_path, workers=1) as executor:
        (failure,) = executor.execute([task("only", act="raise")])
    assert isinstance(failure, Failure)
    assert failure.attempts == tries(tmp_path, "only") == 3


def failing(
    *errors: tuple[str, str], running: str = "", total: int | None = None
) -> _FirstFailures:
    failures = _FirstFailures()
    for name, error in errors:
        failures.add(name, error, running.split() or [name], total)
    return failures


def test_which_first_failures_stop_a_stage() -> None:
    alike = [("a", "x"), ("b", "x"), ("c", "x")]
    with pytest.raises(TaskFailed, match="at 3 tasks"):
        failing(*alike)
    failing(("a", "x"), ("b", "y"), ("c", "x"), ("d", "x"))  # not the same error
    failing(("a", "x"), ("a", "x"), ("a", "x"), total=1)
    failing(("a", "x"), ("a", "x"), ("b", "x"), ("b", "x"))  # there may be a third task
    # A machine of its own is broken: the tasks that others began with have not failed yet.
    failures = failing(*alike, running="a e f")
    failures.add("e", "x", [], None)
    with pytest.raises(TaskFailed, match="first 5 attempts, at 5 tasks"):
        failures.add("f", "x", [], None)
    failures = failing(*alike[:2])
    failures.stop_watching()
    failures.add("c", "x", [], None)


def test_a_task_over_its_time_is_ended(tmp_path: Path) -> None:
    hanging = task("hanging", act="hang")
    others = [task(str(number)) for number in range(6)]
    with pool(tmp_path, workers=2, limits=Limits(attempts=2, task_timeout=2)) as executor:
        answers = list(executor.execute([hanging, *others]))
    (failure,) = [answer for answer in answers if isinstance(answer, Failure)]
    assert failure == Failure(hanging.id, "ran longer than 2 s", 2)
    assert len(answers) == 7


def test_a_fatal_error_arrives_as_itself_and_ends_the_job(tmp_path: Path) -> None:
    kinds = {"fatal": NonFiniteActivations, "integrity": IntegrityError}
    with pool(tmp_path, workers=1) as executor:
        for act, kind in kinds.items():
            with pytest.raises(ZfscaleError) as caught:
                list(executor.execute([task(act, act=act), task("next", seconds=1)]))
            assert type(caught.value) is kind
            assert tries(tmp_path, act) == 1
        # The pool stands: the next call begins with fresh processes.
        assert len(list(executor.execute([task("later")]))) == 1


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pool(tmp_path, start="raise") as executor, pytest.raises(UsageError, match="weights"):
        list(executor.execute([task("0")]))
    gone = pytest.raises(ZfscaleError, match="no worker can be started")
    with pool(tmp_path, workers=1, start="exit") as executor, gone:
        list(executor.execute([task("0")]))


def test_what_fits_nowhere_is_said_and_given_up(
    tmp_path: Path, cpus: int, caplog: pytest.LogCaptureFixture
) -> None:
    needs = f"each worker needs {2 * cpus} CPU on one node, and Ray has 1 node with {cpus} CPU"
    given_up = pytest.raises(ZfscaleError, match=rf"no worker has started for \d+ s: {needs}")
    limits = Limits(start_notice=0.2, start_limit=1.0, poll=0.1)
    options: dict[str, Any] = {"workers": None, "threads": 2 * cpus, "address": "auto"}
    with pool(tmp_path, limits=limits, **options) as executor, given_up:
        list(executor.execute([task("0")]))
    (notice,) = caplog.messages
    assert notice.startswith("waiting for 1 of 1 workers")
    assert needs in notice


def test_workers_without_room_hold_up_no_others(
    tmp_path: Path, cpus: int, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(start_notice=0.2, poll=0.1)
    with pool(tmp_path, workers=2, threads=cpus, address="auto", limits=limits) as executor:
        answers = list(executor.execute([task(str(n), seconds=0.2) for n in range(6)]))
    assert all(isinstance(answer, Receipt) for answer in answers)
    assert len(processes(tmp_path)) == 1
    (notice,) = caplog.messages
    assert " of 2 workers" in notice


def test_the_limit_for_starting_does_not_run_while_one_worker_works(
    tmp_path: Path, cpus: int
) -> None:
    with pool(tmp_path, workers=2, threads=cpus, address="auto") as executor:
        assert len(list(executor.execute([task("first")]))) == 1  # one of them has started
        executor._limits = Limits(start_limit=0.5, poll=0.1)
        answers = list(executor.execute([task(str(n), seconds=0.3) for n in range(4)]))
    assert len(answers) == 4


def test_loading_takes_nothing_from_the_time_of_the_first_task(tmp_path: Path) -> None:
    limits = Limits(attempts=1, task_timeout=1.5)
    with pool(tmp_path, workers=1, start="slow", limits=limits) as executor:
        (answer,) = executor.execute([task("0")])
    assert isinstance(answer, Receipt)
