"""The resources of a cluster: which device its workers compute on, how many workers fit.

Knows the resources of Ray's nodes; not what is done with them. What a node has and what a worker
needs are both amounts by name, as Ray gives them: {"CPU": 4, "GPU": 1}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from zfscale.cluster.session import session
from zfscale.errors import UsageError

Resources = Mapping[str, float]


def alive_nodes(ray: Any) -> list[Resources]:
    """Resources of each node that is alive, whether they are in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_workers(nodes: Iterable[Resources], per_worker: Resources) -> int:
    """Number of workers that fit on the nodes at the same time.

    A worker lies on one node: what is left over on several nodes does not add up to a worker.
    """
    return sum(
        min(int(node.get(name, 0) / amount) for name, amount in per_worker.items() if amount)
        for node in nodes
    )


def device(address: str) -> str:
    """What `device: auto` stands for on the cluster at `address`: cuda if a node has a GPU.

    Raises UsageError if no node has any CPU: nodes that start on demand are not known yet.
    """
    with session(address) as ray:
        nodes = alive_nodes(ray)
    if any(node.get("GPU", 0) for node in nodes):
        return "cuda"
    if any(node.get("CPU", 0) for node in nodes):
        return "cpu"
    raise UsageError(
        f"device: auto: the cluster has {format_nodes(nodes)} so far, so no worker can run; if it "
        "starts nodes on demand, say which and how many: --set device=cuda --set workers=8"
    )


def format_nodes(nodes: Iterable[Resources]) -> str:
    """Nodes as text, equal ones together: 3 nodes with 2 CPU, 1 node with 8 CPU and 1 GPU."""
    counts = Counter(format_resources(node) for node in nodes)
    parts = (
        f"{count} node{'' if count == 1 else 's'} with {text}" for text, count in counts.items()
    )
    return ", ".join(parts) or "no nodes"


def format_resources(resources: Resources) -> str:
    """CPU and GPU as text: 4 CPU and 1 GPU."""
    parts = (f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name))
    return " and ".join(parts) or "no CPU"
