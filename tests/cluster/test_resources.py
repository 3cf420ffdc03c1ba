"""What fits on the nodes of a cluster, and which device it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from zfscale.cluster import resources
from zfscale.errors import UsageError

HEAD: dict[str, float] = {"memory": 8e9, "node:10.0.0.1": 1}
SMALL: dict[str, float] = {"CPU": 2, "memory": 8e9}
LARGE: dict[str, float] = {"CPU": 9}
GPU: dict[str, float] = {"CPU": 8, "GPU": 1}
GPUS: dict[str, float] = {"CPU": 8, "GPU": 4}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "workers"),
    [
        ([SMALL] * 3, 2, 0, 3),
        ([SMALL] * 3, 4, 0, 0),  # six cores, but never four together
        ([HEAD, LARGE, LARGE], 4, 0, 4),
        ([HEAD, LARGE, SMALL], 4, 1, 0),
        ([HEAD, LARGE, GPU, GPU], 4, 1, 2),
        ([GPUS], 4, 1, 2),  # the cores of the node are for two
        ([GPUS], 1, 0.5, 8),
        ([{"CPU": 2, "GPU": 4}, LARGE], 4, 1, 0),
        ([], 1, 0, 0),
    ],
)
def test_workers_are_counted_node_by_node(
    nodes: list[dict[str, float]], cpus: int, gpus: float, workers: int
) -> None:
    assert resources.count_workers(nodes, {"CPU": cpus, "GPU": gpus}) == workers


def connected(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    """A cluster of these nodes, and a large one that was lost."""
    found = [{"Alive": True, "Resources": node} for node in nodes]
    found.append({"Alive": False, "Resources": {"CPU": 64, "GPU": 8}})

    @contextmanager
    def session(address: str) -> Iterator[Any]:
        assert address == "auto"
        yield SimpleNamespace(nodes=lambda: found)

    monkeypatch.setattr(resources, "session", session)


@pytest.mark.parametrize(
    ("nodes", "device"),
    [([HEAD, SMALL, GPU], "cuda"), ([SMALL, LARGE], "cpu"), ([HEAD, LARGE], "cpu")],
)
def test_the_device_is_what_the_nodes_have(
    nodes: list[dict[str, float]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected(monkeypatch, *nodes)
    assert resources.device("auto") == device


def test_a_cluster_that_is_still_empty_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    connected(monkeypatch, HEAD)
    with pytest.raises(UsageError, match=r"1 node with no CPU .* --set device=cuda"):
        resources.device("auto")


def test_nodes_in_words() -> None:
    found = [SMALL, GPU, SMALL, HEAD]
    expected = "2 nodes with 2 CPU, 1 node with 8 CPU and 1 GPU, 1 node with no CPU"
    assert resources.format_nodes(found) == expected
    assert resources.format_nodes([]) == "no nodes"
