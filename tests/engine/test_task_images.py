"""The images of a task: read ahead, in batches of one size and layout."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tinyjobs
import torch

from zfscale import collection
from zfscale.engine.task_images import TaskImages, _again, _read_ahead
from zfscale.records import (
    Image,
    ImageRange,
    ImageRef,
    Preprocessing,
    Reason,
    Sample,
    Task,
    image_id,
)
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


def accepted(kind: str, folder: Path) -> tuple[Path, list[Image]]:
    """A shard of three images, and what a scan has accepted of it."""
    seeds = [tinyjobs.image(seed) for seed in range(3)]
    file = folder / f"a.{kind}"
    if kind == "tar":
        tinyjobs.write_tar(file, range(3))
    else:
        pq.write_table(pa.table({"image": seeds}), file, compression="none")
    (shard,) = collection.find([str(file)])
    found = collection.read(shard, collection.index(shard))
    return file, [
        Image(sample.index, image_id(data), sample.key, None, sample.ref, 20, 22)
        for sample, data in zip(found, seeds, strict=True)
    ]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def overwritten(file: Path) -> None:
    """Its beginning, where the images lie: in Parquet with the header of their page."""
    data = file.read_bytes()
    file.write_bytes(b"\xff" * 1200 + data[1200:])


DAMAGES = {"cut": cut, "overwritten": overwritten, "gone": Path.unlink}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_image_that_was_changed_since_the_scan_is_unreadable(
    damage: str, kind: str, tmp_path: Path
) -> None:
    file, images = accepted(kind, tmp_path)
    DAMAGES[damage](file)
    again = [_again(place, image, None) for place, image in enumerate(images)]
    assert again[0].data is None
    assert again[0].reason is Reason.UNREADABLE


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_permission_that_was_taken_away_and_errors_that_may_pass(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, images = accepted(kind, tmp_path)

    def failing(error: OSError) -> Sample:
        def fail(*_: object, **__: object) -> object:
            raise error

        monkeypatch.setattr("zfscale.storage.files.open_file", fail)
        return _again(0, images[0], None)

    assert failing(PermissionError(errno.EACCES, "denied")).reason is Reason.UNREADABLE
    for error in (TimeoutError("network"), OSError(errno.EIO, "disk")):
        with pytest.raises(type(error)):
            failing(error)


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
