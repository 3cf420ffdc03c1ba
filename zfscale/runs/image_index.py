"""The accepted images of a run by id, by key or by lot, from its table `images`.

Read batch by batch: the table grows with the input, what is held does not.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zfscale.errors import UsageError
from zfscale.records import Image, ImageRef, Status
from zfscale.runs import tables
from zfscale.storage.base import Storage

_NAMES = ("id", "key", "label", "width", "height", *(f.name for f in fields(ImageRef)))


def by_id(storage: Storage, ids: Sequence[str]) -> list[Image]:
    """Images by id, with their references, in the order of the collection."""
    rows = tables.read(
        storage, "images", list(_NAMES), where={"id": list(ids), "status": Status.OK}
    )
    columns = (np.ma.asarray(rows[name]).tolist() for name in _NAMES)
    return [
        Image(-1, id_, key, label, ImageRef(*ref), width, height)
        for id_, key, label, width, height, *ref in zip(*columns, strict=True)
    ]


def by_key(storage: Storage, keys: Sequence[str]) -> list[Image]:
    """Images by key, in the order of the collection.

    Raises UsageError naming keys that no accepted image has.
    """
    wanted = pa.array(sorted(set(keys)), pa.string())
    found: dict[str, str] = {}
    for batch in _accepted(storage, "key"):
        batch = batch.filter(pc.is_in(batch["key"], wanted))  # noqa: PLW2901
        found |= zip(batch["id"].to_pylist(), batch["key"].to_pylist(), strict=True)
    missing = sorted(set(keys) - set(found.values()))
    if missing:
        raise UsageError(
            f"images: {storage.url} has no accepted image with the key {missing[0]!r}"
            f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}; its table `images` "
            "lists the keys, and what was quarantined or a duplicate"
        )
    return by_id(storage, list(found))


def unknown(storage: Storage, keys: Sequence[str]) -> list[str]:
    """Those of some keys that no image has, whatever became of it, sorted."""
    left = set(keys)
    for batch in tables.open_dataset(storage, "images").to_batches(columns=["key"]):
        left.difference_update(batch["key"].to_pylist())
    return sorted(left)


def sample(storage: Storage, count: int, seed: int) -> list[Image]:
    """`count` images, or all if there are fewer, in the order of the collection.

    The choice depends on the seed and on which images there are, not on their order: those with
    the smallest hashes of seed and id.
    """

    def lot(id_: str) -> bytes:
        return hashlib.blake2b(f"{seed} {id_}".encode(), digest_size=16).digest()

    ids = (id_ for batch in _accepted(storage) for id_ in batch["id"].to_pylist())
    return by_id(storage, heapq.nsmallest(count, ids, key=lot))


def _accepted(storage: Storage, *columns: str) -> Iterator[pa.RecordBatch]:
    dataset = tables.open_dataset(storage, "images")
    ok = pc.field("status") == Status.OK.value
    yield from dataset.to_batches(columns=["id", *columns], filter=ok)
