"""One embedded Ray for all tests of a module: starting one takes far longer than using it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Embedded Ray stays on loopback only if it was asked before the first import of Ray.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@pytest.fixture(scope="module")
def _ray() -> Iterator[Any]:
    from zfscale.cluster.session import session

    with session(None, at_least_cpus=8) as ray:
        yield ray


@pytest.fixture
def shared_ray(_ray: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pools use the one Ray of this module, also where they are given an address."""

    @contextmanager
    def session(address: str | None, at_least_cpus: int = 0) -> Iterator[Any]:
        yield _ray

    monkeypatch.setattr("zfscale.cluster.pool.session", session)
    return _ray


@pytest.fixture
def cpus(shared_ray: Any) -> int:
    """What the shared Ray counts on its one node, whatever this machine has."""
    return int(shared_ray.cluster_resources()["CPU"])
