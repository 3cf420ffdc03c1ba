"""What a cluster has: which device its workers compute on, how many of them fit, in words.

Knows the resources of Ray's nodes; not what is done with them. A node's resources and what a
worker needs are amounts by name, as Ray has them: {"CPU": 4, "GPU": 1}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from zfscale.cluster.session import session
from zfscale.errors import UsageError

Amounts = Mapping[str, float]


def nodes(ray: Any) -> list[Amounts]:
    """Resources of each node that is alive, whether they are in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fitting(found: Iterable[Amounts], need: Amounts) -> int:
    """Workers that run at the same time. Each is on one node: rests of several do not add up."""
    return sum(
        min(int(node.get(name, 0) / amount) for name, amount in need.items() if amount)
        for node in found
    )


def device(address: str) -> str:
    """What `device: auto` stands for on the cluster at `address`: cuda where it has a GPU.

    Raises UsageError if none of its nodes could work: those that will start are not known.
    """
    with session(address) as ray:
        found = nodes(ray)
    if any(node.get("GPU", 0) for node in found):
        return "cuda"
    if any(node.get("CPU", 0) for node in found):
        return "cpu"
    raise UsageError(
        f"device: auto: the cluster has {inventory(found)} for work so far; if it starts nodes on "
        "demand, say which and how many: --set device=cuda --set workers=8"
    )


def inventory(found: Iterable[Amounts]) -> str:
    """Nodes in words, equal ones together: 3 nodes with 2 CPU, 1 node with 8 CPU and 1 GPU."""
    kinds = Counter(words(node) for node in found)
    several = (f"{n} node{'' if n == 1 else 's'} with {kind}" for kind, n in kinds.items())
    return ", ".join(several) or "no nodes"


def words(amounts: Amounts) -> str:
    """CPU and GPU in words: 4 CPU and 1 GPU."""
    named = (f"{amounts[name]:g} {name}" for name in ("CPU", "GPU") if amounts.get(name))
    return " and ".join(named) or "no CPU"
