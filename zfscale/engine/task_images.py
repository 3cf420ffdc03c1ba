"""The images of one task: read, decoded ahead, put into batches, and accounted for.

Knows the collection; not what is computed on a batch, nor where results go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale import collection
from zfscale.analysis import Batch
from zfscale.collection.decode import Decoded, Quarantine, decode_ahead
from zfscale.engine.resolve import ResolvedJob
from zfscale.errors import IntegrityError
from zfscale.records import (
    Columns,
    Counts,
    Image,
    ImageList,
    ImageRange,
    Preprocessing,
    Reason,
    Sample,
    Status,
    Task,
    image_id,
)
from zfscale.runs.image_index import references
from zfscale.storage.base import Storage


class TaskImages:
    """Batches of one task and the outcome of each of its images.

    `expected` says whether the task decodes images at all.
    """

    def __init__(
        self, task: Task, storage: Storage, job: ResolvedJob, preprocessing: Preprocessing
    ) -> None:
        self.task = task
        self.expected = isinstance(task.images, ImageRange | ImageList)
        self.batch = job.batch
        self.preprocessing = preprocessing
        self.device = job.device
        self.threads = job.decode_threads
        self._storage = storage
        self._format = job.format
        self._rows: dict[int, dict[str, Any]] = {}
        self._refused: dict[str, Reason] = {}

    def batches(self) -> Iterator[Batch]:
        """Batches of exactly B in the order of the source, the last one padded with zeros.

        The next two decode while the consumer works on this one, and two more are read.
        """
        pixels = self._blank()
        images: list[Image] = []
        for image, decoded in self._accepted():
            pixels[len(images)] = decoded
            images.append(image)
            if len(images) == self.batch:
                yield Batch(pixels.to(self.device, non_blocking=True), tuple(images))
                pixels, images = self._blank(), []
        if images:
            yield Batch(pixels.to(self.device, non_blocking=True), tuple(images))

    def quarantine(self, image: Image, reason: Reason) -> None:
        """Take back an image that was given out as good, and with it all its copies."""
        self._refused[image.id] = reason

    def counts(self) -> Counts:
        """How the images ended; all of the task once `batches` is used up."""
        rows = self._settled()
        status = [row["status"] for row in rows]
        return Counts(
            images=len(rows),
            ok=status.count(Status.OK),
            quarantined=status.count(Status.QUARANTINED),
            duplicate=status.count(Status.DUPLICATE),
            non_finite=sum(row["reason"] == Reason.NON_FINITE for row in rows),
        )

    def outcomes(self) -> Columns:
        """One row an image: position, id, width, height, status, reason.

        The position is that in the shard for a range, that in the list for a list.
        """
        rows = self._settled()
        columns: dict[str, NDArray[Any]] = {
            name: np.array([row[name] for row in rows], dtype=object)
            for name in ("id", "status", "reason")
        }
        columns["position"] = np.array([row["position"] for row in rows], np.int64)
        for name in ("width", "height"):
            missing = [row[name] is None for row in rows]
            values = np.array([row[name] or 0 for row in rows], np.int64)
            columns[name] = np.ma.masked_array(values, missing)
        return columns

    def _settled(self) -> list[dict[str, Any]]:
        """The rows in order. What was taken back counts as quarantined, wherever a copy lies."""
        rows = []
        for _, row in sorted(self._rows.items()):
            reason = self._refused.get(row["id"])
            refused = {} if reason is None else {"status": Status.QUARANTINED, "reason": reason}
            rows.append(row | refused)
        return rows

    def _accepted(self) -> Iterator[tuple[Image, torch.Tensor]]:
        """Images that decode, once each by content; the others get their outcome here."""
        skip = self.task.images.skip if isinstance(self.task.images, ImageRange) else ()
        seen: set[str] = set()
        samples = _read_ahead(self._samples(), 2 * self.batch)
        ahead = decode_ahead(samples, self.preprocessing, self.threads, 2 * self.batch)
        for sample, decoded in ahead:
            row = self._rows[sample.index] = _row(sample)
            if isinstance(decoded, Quarantine):
                row |= {"status": Status.QUARANTINED, "reason": decoded.reason}
                continue
            row |= {"id": decoded.id, "width": decoded.width, "height": decoded.height}
            if decoded.id in seen or sample.index in skip:
                row["status"] = Status.DUPLICATE
                seen.add(decoded.id)
                continue
            seen.add(decoded.id)
            yield _image(sample, decoded), decoded.pixels

    def _samples(self) -> Iterator[Sample]:
        match self.task.images:
            case ImageRange() as images:
                yield from collection.read(images.shard, references(self._storage, images))
            case ImageList(images=images):
                for index, image in enumerate(images):
                    yield _again(index, image, self._format)

    def _blank(self) -> torch.Tensor:
        shape = (self.batch, 3, *self.preprocessing.crop)
        blank = torch.empty(
            shape,
            dtype=torch.uint8,
            memory_format=torch.channels_last,
            pin_memory=self.device == "cuda",
        )
        return blank.zero_()


def _read_ahead(samples: Iterator[Sample], ahead: int) -> Iterator[Sample]:
    """`samples` in their order, read in a thread of their own, at most `ahead` of the consumer.

    When the iterator ends, however it ends, the thread finishes the read it is at, and ends too;
    nobody waits for it.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="read")
    try:
        pending = deque(pool.submit(next, samples, None) for _ in range(ahead))
        while (sample := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, samples, None))
            yield sample
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _again(index: int, image: Image, kind: str | None) -> Sample:
    """Read an image that was accepted before. Changed bytes are as good as gone."""
    try:
        data = collection.fetch(image.ref, kind)
    except (FileNotFoundError, PermissionError, IntegrityError):
        data = b""
    if image_id(data) != image.id:
        return Sample(index, image.key, image.label, image.ref, reason=Reason.UNREADABLE)
    return Sample(index, image.key, image.label, image.ref, data)


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "position": sample.index,
        "id": None,
        "width": None,
        "height": None,
        "status": Status.OK,
        "reason": None,
    }


def _image(sample: Sample, decoded: Decoded) -> Image:
    size = decoded.width, decoded.height
    return Image(sample.index, decoded.id, sample.key, sample.label, sample.ref, *size)
