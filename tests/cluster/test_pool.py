"""The pool answers every task, whatever happens to the processes that carry them out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zfscale.cluster import pool as module
from zfscale.cluster import session as session_module
from zfscale.cluster.handle import IN_FLIGHT
from zfscale.cluster.pool import RayPool
from zfscale.cluster.session import session
from zfscale.convnet.runtime import WAITING_VARIABLES
from zfscale.errors import IntegrityError, NonFiniteActivations, UsageError, ZfscaleError
from zfscale.records import Counts, Failure, Receipt, Task


def make_factory(folder: Path) -> Any:
    """A factory of workers that note each attempt as a file and act as the task says.

    Local classes travel to the worker processes by value: these cannot import the tests.
    """

    errors = {
        "raise": OSError("the disk is gone"),
        "fatal": NonFiniteActivations("the weights are to blame"),
        "integrity": IntegrityError("two results"),
    }

    class Worker:
        def __init__(self, setup: Any) -> None:
            if setup.start == "raise":
                raise UsageError("no such weights")
            if setup.start == "exit":
                os._exit(1)
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
    setup: Any = SimpleNamespace(device=device, threads=threads, start=start)
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WAITING_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    class Worker:
        def __init__(self, setup: Any) -> None:
            told = os.environ.get("OMP_WAIT_POLICY")
            (tmp_path / "told").write_text(f"{told}, torch: {'torch' in sys.modules}")

        def run(self, task: Task) -> Receipt:
            return Receipt(task.id, (), Counts(1, 1), 0.0)

    setup: Any = SimpleNamespace(device="cpu", threads=1)
    executor = RayPool(setup, 1, factory=Worker)
    try:
        list(executor.execute([task("any")]))
    finally:
        executor.close()
    assert (tmp_path / "told").read_text() == "passive, torch: False"


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
            assert done - 1 + IN_FLIGHT <= handed <= done + IN_FLIGHT + 1
        answers.close()


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    tasks = [task(str(number), seconds=0.1) for number in range(30)]
    with pool(tmp_path, workers=2) as executor:
        answers = executor.execute(tasks)
        got = [next(answers) for _ in range(4)]
        victim = min(processes(tmp_path))
        os.kill(victim, signal.SIGKILL)
        got += answers
    assert sorted(answer.task for answer in got) == sorted(each.id for each in tasks)
    assert all(isinstance(answer, Receipt) for answer in got)
    assert len(processes(tmp_path)) == 3


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


def test_an_exception_is_tried_again_and_told(tmp_path: Path) -> None:
    passing = task("passing", act="raise", times=2)
    lasting = task("lasting", act="raise")
    with pool(tmp_path, workers=2) as executor:
        answers = {answer.task: answer for answer in executor.execute([passing, lasting])}
    assert isinstance(answers[passing.id], Receipt)
    assert answers[lasting.id] == Failure(lasting.id, "OSError: the disk is gone", 3)


def test_a_task_over_its_time_is_ended(tmp_path: Path) -> None:
    hanging = task("hanging", act="hang")
    others = [task(str(number)) for number in range(6)]
    with pool(tmp_path, workers=2, attempts=2, task_timeout=2) as executor:
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


def a_cluster(cpus: int) -> Any:
    """What stands for the session on a cluster: one node, no GPU."""
    return lambda address, at_least_cpus: session(None, at_least_cpus=cpus)


def test_what_fits_nowhere_is_said_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(module, "session", a_cluster(cores))
    monkeypatch.setattr(module, "START_NOTICE", 0.5)
    monkeypatch.setattr(module, "START_LIMIT", 3.0)
    needs = f"each needs {2 * cores} CPU on one node, and Ray has 1 node with {cores} CPU"
    given_up = pytest.raises(ZfscaleError, match=f"no worker could start for [34] s: {needs}")
    options = {"workers": None, "threads": 2 * cores, "address": "auto"}
    with pool(tmp_path, **options) as executor, given_up:
        list(executor.execute([task("0")]))
    (notice,) = caplog.messages
    assert notice.startswith(f"waiting for 1 of 1 workers: {needs}")


def test_workers_without_room_hold_up_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(module, "session", a_cluster(cores))
    with pool(tmp_path, workers=2, threads=cores, address="auto") as executor:
        assert len(list(executor.execute([task("first")]))) == 1  # one of them has started
        monkeypatch.setattr(module, "START_NOTICE", 0.5)
        monkeypatch.setattr(module, "START_LIMIT", 1.5)
        answers = list(executor.execute([task(str(n), seconds=0.5) for n in range(6)]))
    assert all(isinstance(answer, Receipt) for answer in answers)
    assert len(processes(tmp_path)) == 1
    (notice,) = caplog.messages
    assert notice.startswith("waiting for 1 of 2 workers")


def test_an_embedded_ray_without_room_refuses_at_once(tmp_path: Path) -> None:
    refused = pytest.raises(UsageError, match=r"device: cuda: a worker .* 99 GPU")
    with refused, pool(tmp_path, workers=None, device="cuda", gpus_per_worker=99):
        pass
    # Nothing of it is left: the next one starts, with room for one whatever the threads are.
    with pool(tmp_path, workers=None, threads=2 * len(os.sched_getaffinity(0))) as executor:
        assert len(list(executor.execute([task("0")]))) == 1


def test_embedded_ray_listens_on_loopback_only_and_leaves_nothing_behind(tmp_path: Path) -> None:
    sigterm = signal.getsignal(signal.SIGTERM)
    environment = dict(os.environ)
    others = descendants(os.getpid())  # e.g. what other tests in this process have started
    with pool(tmp_path, workers=2) as executor:
        list(executor.execute([task(str(number)) for number in range(4)]))
        assert signal.getsignal(signal.SIGTERM) is sigterm
        family = descendants(os.getpid()) - others
        listening = sockets(family)
        assert len(listening) >= 4  # gcs, raylet, two workers
        assert {address for address in listening if "127.0.0.1" not in address} == set()
        # A token of our own, unless another test had Ray imported before: then there is none.
        assert os.environ.get("RAY_AUTH_TOKEN") == session_module._token().get("RAY_AUTH_TOKEN")
    deadline = time.monotonic() + 20
    while (left := descendants(os.getpid()) & family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == set()
    # Ray itself leaves two variables of its own when it is first imported.
    left_behind = dict(os.environ).items() - environment.items()
    assert {name for name, _ in left_behind} <= {"PYTHONBREAKPOINT", "RAY_CLIENT_MODE"}
    assert environment.items() <= dict(os.environ).items()


def descendants(pid: int) -> set[int]:
    """Running processes below `pid`."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found: set[int] = set()
    below = [pid]
    while below:
        below = [child for parent in below for child in children.get(parent, [])]
        found.update(below)
    return found


def sockets(pids: set[int]) -> list[str]:
    """Local addresses on which these processes listen, as `ss` prints them."""
    lines = subprocess.run(
        ["ss", "-Hltnp"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line.split()[3] for line in lines if any(f"pid={pid}," in line for pid in pids)]
