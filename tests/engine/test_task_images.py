"""The images of a task: read ahead, in batches of one size and layout."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinyjobs
import torch

from zfscale import collection
from zfscale.engine.task_images import TaskImages, _read_ahead
from zfscale.records import ImageRange, ImageRef, Preprocessing, Sample, Task
from zfscale.runs import segments
from zfscale.storage import open_storage

RECIPE = Preprocessing(64, (56, 48), (0.0, 0.0, 0.0))


def samples(count: int) -> Iterator[Sample]:
    for index in range(count):
        yield Sample(index, f"k{index}", None, ImageRef("x"), b"")


def test_batches_are_of_one_size_and_layout_the_last_one_padded(tmp_path: Path) -> None:
    tinyjobs.write_tar(tmp_path / "0.tar", range(9))
    job = tinyjobs.resolved(tinyjobs.spec(tmp_path / "run", tmp_path))
    storage = open_storage(job.run)
    (shard,) = collection.find(job.images)
    index = segments.write(storage, Task("index", shard), "index", collection.index(shard))
    task = Task("scan", ImageRange(shard, index, 1, 8))
    batches = list(TaskImages(task, storage, job, RECIPE).batches())
    assert [image.key for image in batches[1].images] == ["0005", "0006", "0007"]
    assert [len(batch.images) for batch in batches] == [4, 3]
    for batch in batches:
        assert batch.pixels.shape == (4, 3, *RECIPE.crop)
        assert batch.pixels.dtype is torch.uint8
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        assert all(batch.pixels[place].any() for place in range(len(batch.images)))
    assert not batches[1].pixels[3].any()


@pytest.mark.parametrize("ahead", [1, 7, 100])
def test_read_ahead_keeps_order_in_a_thread_of_its_own(ahead: int) -> None:
    readers = set()

    def noted() -> Iterator[Sample]:
        for sample in samples(20):
            readers.add(threading.current_thread().name)
            yield sample

    assert [sample.index for sample in _read_ahead(noted(), ahead)] == list(range(20))
    assert len(readers) == 1
    assert readers.pop().startswith("read")


def test_read_ahead_is_bounded_and_ends_its_thread() -> None:
    drawn = []

    def counted() -> Iterator[Sample]:
        for sample in samples(1000):
            drawn.append(sample.index)
            yield sample

    stream = _read_ahead(counted(), ahead=5)
    for _ in range(3):
        next(stream)
    deadline = time.monotonic() + 5
    while len(drawn) < 3 + 5 - 1:
        assert time.monotonic() < deadline, "nothing is read ahead"
    stream.close()  # type: ignore[attr-defined]
    while any(thread.name.startswith("read") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the thread outlives the iterator"
    assert len(drawn) <= 3 + 5


def test_read_ahead_passes_on_errors_of_the_source() -> None:
    def broken() -> Iterator[Sample]:
        yield from samples(3)
        raise TimeoutError("the storage is away")

    stream = _read_ahead(broken(), ahead=10)
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TimeoutError):
        next(stream)


def test_whoever_stops_does_not_wait_for_a_read_that_hangs() -> None:
    hangs, goes_on, ended = threading.Event(), threading.Event(), threading.Event()

    def hanging() -> Iterator[Sample]:
        yield from samples(1)
        hangs.set()
        goes_on.wait(30)
        ended.set()

    stream = _read_ahead(hanging(), ahead=3)
    next(stream)
    assert hangs.wait(5)
    stream.close()  # type: ignore[attr-defined]
    assert not ended.is_set()
    goes_on.set()
