"""Embedded Ray: what it refuses, where it listens, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zfscale.cluster import pool as pool_module
from zfscale.cluster import session as session_module
from zfscale.cluster.pool import RayPool
from zfscale.errors import UsageError
from zfscale.records import Counts, Receipt, Task


def make_worker(setup: Any) -> Any:
    """A worker that does nothing; by value, since worker processes cannot import the tests."""

    class Worker:
        def run(self, task: Task) -> Receipt:
            return Receipt(task.id, (), Counts(1, 1), 0.0)

    return Worker()


@contextmanager
def pool(workers: int | None, threads: int = 1, **options: Any) -> Iterator[RayPool]:
    setup: Any = SimpleNamespace(device="cpu", threads=threads)
    executor = RayPool(setup, workers, factory=make_worker, **options)
    try:
        yield executor
    finally:
        executor.close()


def test_a_session_is_closed_if_the_nodes_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str | None] = []

    class Session:
        """A class, not a generator: that would be closed too when it is merely forgotten."""

        def __init__(self, address: str | None, at_least_cpus: int) -> None:
            self.address = address

        def __enter__(self) -> Any:
            return SimpleNamespace(nodes=self.nodes)

        def __exit__(self, *_: object) -> None:
            closed.append(self.address)

        def nodes(self) -> Any:
            raise ConnectionError("the head is gone")

    monkeypatch.setattr(pool_module, "session", Session)
    with pytest.raises(ConnectionError, match="head is gone"), pool(1, address="10.0.0.1:6379"):
        pass
    assert closed == ["10.0.0.1:6379"]


def test_embedded_ray_listens_on_loopback_only_and_leaves_nothing_behind() -> None:
    sigterm = signal.getsignal(signal.SIGTERM)
    environment = dict(os.environ)
    others = descendants(os.getpid())  # e.g. what other tests in this process have started
    with pytest.raises(UsageError, match=r"device: cpu: there is no room .* 99 GPU"):
        RayPool(SimpleNamespace(device="cpu", threads=1), gpus_per_worker=99)  # type: ignore[arg-type]
    # Nothing of it is left: the next one starts, with room for one whatever the threads are.
    with pool(None, threads=2 * len(os.sched_getaffinity(0))) as executor:
        assert len(list(executor.execute([Task("0"), Task("1")]))) == 2
        assert signal.getsignal(signal.SIGTERM) is sigterm
        family = descendants(os.getpid()) - others
        listening = sockets(family)
        assert len(listening) >= 3  # gcs, raylet, worker
        assert {address for address in listening if "127.0.0.1" not in address} == set()
        # A token of our own, unless another test had Ray imported before: then there is none.
        token = session_module._embedded_token()
        assert os.environ.get("RAY_AUTH_TOKEN") == token.get("RAY_AUTH_TOKEN")
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
