"""The index of a collection: one task a shard, and what happens when the images change."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pandas as pd
import pytest
import tinyjobs
from tinyjobs import counting, no_work, run

import zfscale
from zfscale.analyses.scan.analysis import Scan
from zfscale.errors import FingerprintMismatch, IntegrityError
from zfscale.runs import manifest
from zfscale.runs.digest import digest
from zfscale.storage import open_storage


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    tinyjobs.write_shards(folder, 3)
    return folder


@pytest.fixture
def spec(shards: Path, tmp_path: Path) -> dict[str, object]:
    return tinyjobs.spec(tmp_path / "run", shards, images=str(shards))


def tasks_of(keys: dict[str, object], analysis: str) -> int:
    return len(manifest.load(open_storage(str(keys["run"]))).analyses[analysis].tasks)


def test_the_index_is_made_by_one_task_a_shard(spec) -> None:
    done = counting()
    run(spec, done)
    given = [task.analysis for task in done.given]
    assert given[:3] == ["index"] * 3
    assert tasks_of(spec, "index") == 3
    rows = zfscale.open(spec["run"]).images
    assert rows["key"].tolist() == [f"{seed:04d}" for seed in range(12)]
    assert rows["label"].tolist() == [seed % 5 for seed in range(12)]


def test_class_folders_are_numbered_by_name_and_empty_ones_are_not(tmp_path: Path) -> None:
    for seed, name in enumerate(("crow", "ant", "bee", "bee")):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"images/{name}/{seed}.png").write_bytes(tinyjobs.image(seed))
    (tmp_path / "images/aardvark").mkdir()
    spec = tinyjobs.spec(tmp_path / "run", tmp_path, images=str(tmp_path / "images"))
    run(spec)
    assert tasks_of(spec, "index") == 4
    results = zfscale.open(spec["run"])
    assert results.classes == ["ant", "bee", "crow"]
    assert results.images[["key", "label"]].values.tolist() == [
        ["ant/1.png", 0], ["bee/2.png", 1], ["bee/3.png", 1], ["crow/0.png", 2],
    ]  # fmt: skip


@pytest.mark.parametrize("backwards", [False, True])
def test_tables_are_published_whatever_their_order(backwards, spec, tmp_path, monkeypatch) -> None:
    clean = run({**spec, "run": str(tmp_path / "clean")})
    original = Scan.publish

    def by_table(self, view, tasks):
        return sorted(original(self, view, tasks), key=lambda p: p[0].name, reverse=backwards)

    monkeypatch.setattr(Scan, "publish", by_table)
    assert run(spec) == clean
    found, expected = zfscale.open(spec["run"]), zfscale.open(tmp_path / "clean")
    for table in ("images", "features", "winners"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(expected, table))
    assert len(found.images) == 12


def added(shards: Path) -> None:
    tinyjobs.write_tar(shards / "9.tar", range(90, 93))


def removed(shards: Path) -> None:
    (shards / "2.tar").unlink()


def changed(shards: Path) -> None:
    tinyjobs.write_tar(shards / "1.tar", range(40, 45))


@pytest.mark.parametrize("change", [added, removed, changed])
def test_a_collection_that_changed_is_refused_and_the_scan_stays(
    change: Callable[[Path], None], spec, shards, tmp_path
) -> None:
    before = run(spec)
    shutil.copytree(shards, tmp_path / "kept")
    change(shards)
    with pytest.raises(FingerprintMismatch) as refused:
        run(spec)
    message = str(refused.value)
    assert message.startswith(f"images: they are others than those of scan in {spec['run']}")
    for way_out in ("a new run directory", "put back", "--replace scan"):
        assert way_out in message
    results = zfscale.open(spec["run"])
    assert results["index"].error == message
    assert results["scan"].state.value == "complete"
    assert len(results.images) == 12
    assert digest(open_storage(spec["run"])) == before
    run({"run": spec["run"], "analyses": {"deconvolve": {}}}, no_work)

    # One way out: put back what was there.
    shutil.rmtree(shards)
    shutil.copytree(tmp_path / "kept", shards)
    run(spec, no_work)
    assert zfscale.open(spec["run"])["index"].state.value == "complete"
    # The other: drop what was made of them. Only what is new is scanned.
    change(shards)
    fresh = run({**spec, "run": str(tmp_path / "fresh")})
    again = counting()
    assert run(spec, again, "scan") == fresh
    assert zfscale.open(spec["run"])["scan"].state.value == "complete"


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("folder", ["", "bee", "bee/deep"])
def test_an_image_added_to_a_folder_is_noticed(folder: str, place: str, tmp_path: Path) -> None:
    images = str(tmp_path / "images") if place == "disk" else f"memory://{uuid.uuid4().hex}"
    fs, root = fsspec.url_to_fs(images)
    for seed, name in enumerate(("ant", folder, folder)):
        fs.makedirs(f"{root}/{name}".rstrip("/"), exist_ok=True)
        fs.pipe_file(f"{root}/{name}/{seed}.png".replace("//", "/"), tinyjobs.image(seed))
    spec = tinyjobs.spec(tmp_path / "run", tmp_path, images=images)
    run(spec)
    run(spec, no_work)
    added = f"{root}/{folder}/9.png".replace("//", "/")
    fs.pipe_file(added, tinyjobs.image(9))
    with pytest.raises(FingerprintMismatch, match="--replace scan"):
        run(spec)
    fs.rm_file(added)
    run(spec, no_work if place == "memory" else counting())


def test_a_shard_with_another_time_is_indexed_again_and_nothing_else(spec, shards) -> None:
    before = run(spec)
    os.utime(shards / "1.tar", (1, 1))
    again = counting()
    assert run(spec, again) == before
    assert [(task.analysis, Path(task.images.uri).name) for task in again.given] == [
        ("index", "1.tar")
    ]
    run(spec, no_work)


def test_a_damaged_index_is_made_again(spec, tmp_path) -> None:
    before = run(spec)
    segment = min((tmp_path / "run/segments/index").iterdir())
    segment.write_bytes(b"nothing")
    again = counting()
    assert run(spec, again) == before
    assert [task.analysis for task in again.given] == ["index"]
    segment.write_bytes(b"nothing")
    # What does not read it is done, but whoever rests on it is told.
    with pytest.raises(IntegrityError, match="files of index, on which it rests, are damaged"):
        run({"run": spec["run"], "analyses": {"deconvolve": {}}}, no_work)


def test_a_task_that_gives_two_results_is_caught(spec, shards, monkeypatch) -> None:
    """An image is changed in place, and the clock put back, while a damaged task is done again."""
    run(spec)
    tar = shards / "1.tar"
    times = tar.stat()
    data = bytearray(tar.read_bytes())
    data[700:710] = bytes(10)
    tar.write_bytes(data)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    for segment in Path(spec["run"], "segments/scan").glob("*-outcomes-*"):
        segment.unlink()
    with pytest.raises(IntegrityError, match="gave two different results"):
        run(spec)
