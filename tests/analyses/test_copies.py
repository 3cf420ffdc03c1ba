"""Copies of one image across tasks, found in buckets, against a dictionary of everything."""

from __future__ import annotations

import numpy as np
import pytest

from zfscale.analyses.scan.copies import find_copies
from zfscale.records import Columns, Status, image_id


def literally(outcomes: list[Columns]) -> dict[int, tuple[int, ...]]:
    """The definition: an image that an earlier task has is a copy."""
    owners: dict[str, int] = {}
    copies: dict[int, tuple[int, ...]] = {}
    for task, rows in enumerate(outcomes):
        for id_, status, position in zip(
            rows["id"], rows["status"], rows["position"].tolist(), strict=True
        ):
            if status == Status.OK and owners.setdefault(id_, task) != task:
                copies[task] = (*copies.get(task, ()), position)
    return copies


def made_up(tasks: int, images: int, different: int, seed: int) -> list[Columns]:
    """Outcomes of tasks that share images: of each, a task accepts one at most."""
    random = np.random.default_rng(seed)
    outcomes = []
    for _ in range(tasks):
        chosen = random.choice(different, images)
        ids = np.array([image_id(str(number).encode()) for number in chosen], object)
        first = np.zeros(images, bool)
        first[np.unique(chosen, return_index=True)[1]] = True
        status = np.where(first, Status.OK, Status.DUPLICATE).astype(object)
        bad = random.random(images) < 0.1
        status[bad], ids[bad] = Status.QUARANTINED, None
        start = int(random.integers(0, 1000))
        position = np.arange(start, start + images)
        outcomes.append({"id": ids, "status": status, "position": position})
    return outcomes


@pytest.mark.parametrize("bucket", [3, 50, 1 << 18])
@pytest.mark.parametrize(("different", "seed"), [(20, 0), (400, 1), (10**9, 2)])
def test_buckets_find_what_a_dictionary_finds(bucket: int, different: int, seed: int) -> None:
    outcomes = made_up(8, 40, different, seed)
    expected = literally(outcomes)
    accepted = [rows["status"] == Status.OK for rows in outcomes]
    rows = [
        {name: each[name][ok] for name in ("id", "position")}
        for each, ok in zip(outcomes, accepted, strict=True)
    ]
    assert find_copies(iter(rows), 8 * 40, bucket) == expected
    assert bool(expected) == (different < 10**9)


def test_tasks_without_accepted_images_have_no_copies() -> None:
    nothing = {"id": np.empty(0, object), "position": np.empty(0, np.int64)}
    assert find_copies([nothing, nothing], 0, 3) == {}
