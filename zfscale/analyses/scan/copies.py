"""Images that are there more than once, found without holding all ids in memory."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zfscale.records import Columns

BUCKET_IMAGES = 1 << 18
"""Images that are compared in memory at once, about: 8 MB of their records."""

_RECORD = np.dtype(
    [("high", np.uint64), ("low", np.uint64), ("task", np.uint32), ("position", np.uint32)]
)
"""Both halves of the id of an image, the task that read it, and its position in the shard."""


def find_copies(
    accepted: Iterable[Columns], images: int, bucket_images: int = BUCKET_IMAGES
) -> dict[int, tuple[int, ...]]:
    """The positions of images that an earlier task has, by the number of the task.

    `accepted` are id and position of the images that each task has accepted, in the order of the
    tasks, about `images` in all. Ids are hashes, so their first bits spread them evenly over
    buckets: copies of one image meet in one bucket, and only one bucket at a time is in memory. The
    others wait in files.
    """
    buckets = max(1, -(-images // bucket_images))
    copies: dict[int, list[int]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="zfscale-copies-") as folder:
        paths = [Path(folder, f"{number}.bin") for number in range(buckets)]
        for records in _in_portions(accepted, bucket_images):
            bucket = (records["high"] >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)
            for number in np.unique(bucket).tolist():
                with paths[number].open("ab") as file:
                    records[bucket == number].tofile(file)
        for path in paths:
            if path.exists():
                for task, position in _repeated(np.fromfile(path, _RECORD)):
                    copies[task].append(position)
    return {task: tuple(sorted(positions)) for task, positions in copies.items()}


def _in_portions(accepted: Iterable[Columns], size: int) -> Iterator[NDArray[np.void]]:
    """The images of all tasks, `size` or a few more at a time: each portion opens every bucket."""
    waiting: list[NDArray[np.void]] = []
    for task, rows in enumerate(accepted):
        waiting.append(_records(task, rows))
        if sum(map(len, waiting)) >= size:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _records(task: int, rows: Columns) -> NDArray[np.void]:
    """The accepted images of one task, as they are compared."""
    ids = bytes.fromhex("".join(rows["id"].tolist()))
    halves = np.array(memoryview(ids)).view(">u8").reshape(-1, 2)
    records = np.empty(len(halves), _RECORD)
    records["high"], records["low"] = halves[:, 0], halves[:, 1]
    records["task"], records["position"] = task, np.asarray(rows["position"])
    return records


def _repeated(records: NDArray[np.void]) -> Iterator[tuple[int, int]]:
    """Task and position of every record whose id an earlier task has too."""
    order = np.lexsort((records["task"], records["low"], records["high"]))
    ordered = records[order]
    ids = ordered[["high", "low"]]
    same = ids[1:] == ids[:-1]
    for record in ordered[1:][same]:
        yield int(record["task"]), int(record["position"])
