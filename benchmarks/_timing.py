"""Timing by turns: ratios of neighbours in time, for a machine is never equally fast twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

Routine = Callable[[], float]
"""Does its work and says how many seconds of it count."""


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_turns(routines: Mapping[str, Routine], rounds: int) -> dict[str, list[float]]:
    """Seconds of every routine in every round; a round runs each of them once."""
    taken: dict[str, list[float]] = {name: [] for name in routines}
    for _ in range(rounds):
        for name, routine in routines.items():
            taken[name].append(routine())
    return taken


def ratio(longer: list[float], shorter: list[float]) -> str:
    """`longer / shorter`: the median over the rounds, and the range that shows a busy machine."""
    found = [a / b for a, b in zip(longer, shorter, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
