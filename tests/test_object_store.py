"""Whole jobs with nothing on the local disk: images and run behind fsspec URLs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collected import read_all

import zfscale
from zfscale import job
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.worker import Serial
from zfscale.records import Failure, Receipt
from zfscale.runs import manifest
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

LAYER = "conv3"


def _run(spec: dict[str, Any], executor=Serial) -> str:
    driver.run(resolve.resolve(job.Job.model_validate(spec)), executor, lambda event: None)
    return digest(open_storage(spec["run"]))


def _spec(run: str, images: str) -> dict[str, Any]:
    analyses = {"scan": {"top_k": 2, "layers": ["conv1", LAYER]}, "deconvolve": {}}
    spec = {"run": run, "images": images, "batch": 8, "analyses": analyses}
    return spec | {"model": "zfscale:cifar", "weights": "seed:0"}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder of shards, a run on it, all on the local disk, and the digest of the run."""
    folder = tmp_path_factory.mktemp("local")
    parts.write(folder / "images", count=30, seed=2, shard_size=12)
    run = str(folder / "run")
    return folder / "images", run, _run(_spec(run, str(folder / "images")))


@pytest.fixture
def bucket() -> Iterator[str]:
    """The URL of an empty place in memory."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    store = fsspec.filesystem("memory")
    if store.exists(url):
        store.rm(url, recursive=True)


def _upload(folder: Path, url: str) -> None:
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"{url}/{path.name}", path.read_bytes())


def test_a_job_in_memory_equals_one_on_disk(local, bucket: str) -> None:
    images, run, expected = local
    _upload(images, f"{bucket}/images")
    assert _run(_spec(f"{bucket}/run", f"{bucket}/images")) == expected
    here, there = zfscale.open(run), zfscale.open(f"{bucket}/run")
    assert there.tables == here.tables
    for name in ("winners", "features"):
        tables = (getattr(results, name).drop(columns="run_id") for results in (there, here))
        pd.testing.assert_frame_equal(*tables)
    assert there.images["uri"].str.startswith("memory://").all()
    shown = there.projection(LAYER, 5)
    assert shown.any()
    np.testing.assert_array_equal(shown, here.projection(LAYER, 5))
    np.testing.assert_array_equal(there.patches(LAYER, 5), here.patches(LAYER, 5))
    switches, local_switches = (results.switches(LAYER, "pool1") for results in (there, here))
    np.testing.assert_array_equal(switches[:9], local_switches[:9])


class Interrupted(Serial):
    """Ctrl-C after two tasks."""

    def execute(self, tasks) -> Iterator[Receipt | Failure]:
        for done, task in enumerate(tasks):
            if done == 2:
                raise KeyboardInterrupt
            yield self._worker.run(task)


def test_interrupted_and_damaged_runs_in_memory_are_completed(local, bucket: str) -> None:
    images, _, expected = local
    spec = _spec(f"{bucket}/run", str(images))
    with pytest.raises(KeyboardInterrupt):
        _run(spec, Interrupted)
    storage = open_storage(spec["run"])
    assert len(manifest.load(storage).analyses["index"].tasks) == 2
    assert _run(spec) == expected
    for path in (storage.list(f"winners/layer={LAYER}")[0], storage.list("segments/scan")[0]):
        storage.delete(path)
        assert _run(spec) == expected
        assert storage.exists(path)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_other_formats_in_memory(kind: str, local, bucket: str) -> None:
    images, _, expected = local
    store = fsspec.filesystem("memory")
    samples = read_all(images)
    if kind == "folder":
        for sample in samples:
            store.pipe_file(f"{bucket}/images/{sample.key}.jpg", sample.data)
        labels = "\n".join(f"{sample.key}.jpg {sample.label}" for sample in samples)
        store.pipe_file(f"{bucket}/images/labels.txt", labels.encode())
    else:
        data, labels = ([getattr(s, name) for s in samples] for name in ("data", "label"))
        table = pa.table({"image": pa.array(data, pa.binary()), "label": labels})
        with store.open(f"{bucket}/images/a.parquet", "wb") as file:
            pq.write_table(table, file, row_group_size=7)
    assert _run(_spec(f"{bucket}/run", f"{bucket}/images")) == expected
