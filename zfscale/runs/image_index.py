"""The images of a run: as the index lists them, and those accepted by a scan, by id, key or lot.

Read batch by batch: the table grows with the input, what is held does not.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zfscale.errors import UsageError
from zfscale.records import Columns, Image, ImageRange, ImageRef, Status
from zfscale.runs import segments
from zfscale.runs.tables import dataset_of
from zfscale.storage.base import Storage

_COLUMNS = ("id", "key", "label", "width", "height", *(f.name for f in fields(ImageRef)))


def references(storage: Storage, images: ImageRange) -> Columns:
    """The rows of the index for a range, each with the label of its class folder if it has one."""
    rows = segments.read(storage, images.index, where={"position": (images.start, images.stop)})
    label = images.shard.label
    return rows if label is None else {**rows, "label": np.ma.array([label] * len(rows["key"]))}


@dataclass(frozen=True)
class ImageIndex:
    """The images that a scan has accepted: status ok. `paths` are the files of its table."""

    storage: Storage
    paths: tuple[str, ...]

    def accepted(self) -> Iterator[Image]:
        """All of them, in the order of the collection, as a stream."""
        return self._images(None)

    def by_id(self, ids: Sequence[str]) -> list[Image]:
        """Images by id, in the order of the collection."""
        return list(self._images(pc.field("id").isin(pa.array(list(ids), pa.string()))))

    def by_key(self, keys: Sequence[str]) -> list[Image]:
        """Images by key, in the order of the collection.

        Raises UsageError naming keys that no accepted image has.
        """
        images = list(self._images(pc.field("key").isin(pa.array(list(keys), pa.string()))))
        missing = sorted(set(keys) - {image.key for image in images})
        if missing:
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise UsageError(
                f"images: {self.storage.url} has no accepted image with the key {missing[0]!r}"
                f"{others}; its table `images` lists the keys, and what was quarantined or a "
                "duplicate"
            )
        return images

    def unknown_keys(self, keys: Sequence[str]) -> list[str]:
        """Those of some keys that no image of the collection has, accepted or not, sorted."""
        left = set(keys)
        for batch in self._batches(["key"], None):
            left.difference_update(batch["key"].to_pylist())
        return sorted(left)

    def sample(self, count: int, seed: int) -> list[Image]:
        """`count` images, or all if there are fewer, in the order of the collection.

        The choice depends on the seed and on which images there are, not on their order: those
        with the smallest hashes of seed and id.
        """

        def lot(id_: str) -> bytes:
            return hashlib.blake2b(f"{seed} {id_}".encode(), digest_size=16).digest()

        batches = self._batches(["id"], pc.field("status") == Status.OK.value)
        ids = (id_ for batch in batches for id_ in batch["id"].to_pylist())
        return self.by_id(heapq.nsmallest(count, ids, key=lot))

    def _images(self, condition: pc.Expression | None) -> Iterator[Image]:
        accepted = pc.field("status") == Status.OK.value
        wanted = accepted if condition is None else accepted & condition
        for batch in self._batches(list(_COLUMNS), wanted):
            values = (batch[name].to_pylist() for name in _COLUMNS)
            for id_, key, label, width, height, *ref in zip(*values, strict=True):
                yield Image(-1, id_, key, label, ImageRef(*ref), width, height)

    def _batches(
        self, columns: list[str], condition: pc.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        if self.paths:  # a scan of no images has published no table
            dataset = dataset_of(self.storage, self.paths)
            # A few batches ahead are enough: by default many megabytes are read in advance.
            yield from dataset.to_batches(columns=columns, filter=condition, batch_readahead=2)
