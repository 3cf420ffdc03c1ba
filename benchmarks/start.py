"""Start of a resumed job, as the number of indexed images grows: time and memory of the driver.

The index is made up and committed as a job would commit it; the tars it speaks of hold nothing.
Then `zfscale run --serial` is started on it, and ended when it hands out its first task: once with
the scan still to do, once with all of it done but for one copy of an image, which the driver has to
find among all of them first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from benchmarks._report import Report
from zfscale.engine.events import Event
from zfscale.engine.opening import open_run
from zfscale.engine.resolve import resolve
from zfscale.job import load
from zfscale.records import Columns, Counts, Receipt, Status
from zfscale.runs import segments

COUNTS = (100_000, 10_000_000)
SHARD = 10_000
"""Images in one tar, as many data sets have them."""
COPY = 7
"""The image that is there twice: at this position of the first tar, and at the end of the last."""


def index_rows(uri: str, first: int, count: int) -> Columns:
    """The index of a tar of images of 100 kB."""
    numbers = np.arange(count)
    none = np.ma.masked_all(count, np.int64)
    return {
        "position": numbers,
        "key": np.array([f"{first + number:08d}" for number in range(count)], dtype=object),
        "label": np.ma.masked_array(numbers % 1000),
        "uri": np.full(count, uri, dtype=object),
        "offset": np.ma.masked_array(512 + numbers * 102_400),
        "length": np.ma.masked_array(np.full(count, 100_000)),
        "row_group": none,
        "row": none,
        "reason": np.full(count, None, dtype=object),
    }


def outcome_rows(start: int, ids: Sequence[str]) -> Columns:
    """All images of a task accepted."""
    count = len(ids)
    return {
        "position": np.arange(start, start + count),
        "id": np.array(ids, dtype=object),
        "width": np.ma.masked_array(np.full(count, 500)),
        "height": np.ma.masked_array(np.full(count, 375)),
        "status": np.full(count, Status.OK.value, dtype=object),
        "reason": np.full(count, None, dtype=object),
    }


def prepare(folder: Path, images: int) -> Path:
    """A job, and its run with a committed index; the path of the job file."""
    tars = folder / "images"
    tars.mkdir(parents=True)
    for number in range(images // SHARD):
        (tars / f"{number:05d}.tar").write_bytes(bytes(10_240))
    path = folder / "job.yaml"
    spec = {"run": str(folder / "run"), "model": "zfscale:zfnet-mini", "images": f"{tars}/*.tar"}
    path.write_text(yaml.safe_dump(spec | {"device": "cpu"}), "utf-8")
    views, ledger = opened(path)
    index = views["index"]
    receipts = []
    for number, task in enumerate(index.stage.analysis.plan(index)):
        rows = index_rows(task.images.uri, number * SHARD, SHARD)
        file = segments.write(ledger.storage, task, "index", rows)
        receipts.append(Receipt(task.id, (file,), Counts(), 1.0))
    ledger.commit("index", receipts)
    return path


def finish_scan(path: Path) -> None:
    """Commit outcomes of every image of the index; the last one is a copy of an early one."""
    views, ledger = opened(path)
    scan = views["scan"]
    scan.manifest = ledger.manifest
    ranges = scan.ranges
    random = np.random.default_rng(0)
    receipts, copied = [], ""
    for number, images in enumerate(ranges):
        hashes = random.bytes(16 * (images.stop - images.start)).hex()
        ids = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
        if number == 0:
            copied = ids[COPY]
        if number == len(ranges) - 1:
            ids[-1] = copied
        task = scan.stage.analysis.task(images)
        file = segments.write(ledger.storage, task, "outcomes", outcome_rows(images.start, ids))
        counts = Counts(images=len(ids), ok=len(ids))
        receipts.append(Receipt(task.id, (file,), counts, 1.0))
    ledger.commit("scan", receipts)


def opened(path: Path) -> tuple[dict, object]:
    """The run of a job as its driver opens it: views by analysis, and the ledger."""

    def ignore(_event: Event) -> None:
        """Nobody watches."""

    opened = open_run(resolve(load(path)), ignore)
    for view in opened.views:
        view.manifest = opened.ledger.manifest
    return {view.stage.name: view for view in opened.views}, opened.ledger


def events(process: subprocess.Popen[str]) -> Iterator[dict]:
    """What a job tells, line by line."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{"):
            yield json.loads(line)


def started(path: Path) -> tuple[float, int]:
    """Seconds until a job hands out its first task of the scan, and the bytes held by then."""
    command = [sys.executable, "-m", "zfscale", "run", str(path), "--serial", "--json"]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        next(e for e in events(process) if e["event"] == "StageBegun" and e["stage"] == "scan")
        seconds = time.perf_counter() - began
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return seconds, int(peak.split()[1]) * 1024
    finally:
        process.kill()
        process.wait()


def run(counts: Sequence[int] = COUNTS) -> Report:
    rows, first = [], {}
    for count in counts:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            path = prepare(Path(folder), count)
            for what in ("scan to do", "copies to find"):
                if what == "copies to find":
                    finish_scan(path)
                seconds, peak = started(path)
                base = first.setdefault(what, peak)
                cells = (f"{seconds:.1f}", f"{peak / 2**20:,.0f}", f"{peak / base:.3f}")
                rows.append((f"{count:,}", what, *cells))
    header = ("images", "left", "s", "MiB of the driver", f"of that of {counts[0]:,}")
    note = f"From the command to its first task; tars of {SHARD:,} images, zfscale:zfnet-mini."
    return Report(header, rows, note)
