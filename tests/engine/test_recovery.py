"""One digest, whatever happens: workers, orders, interruptions, kills, damage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zfscale import job
from zfscale.datasets import parts
from zfscale.engine import driver, resolve, view
from zfscale.engine.task_images import Feed
from zfscale.engine.worker import Serial, Setup
from zfscale.errors import FingerprintMismatch, IntegrityError, UnsupportedOperation, UsageError
from zfscale.records import Counts, Failure, Receipt, Task
from zfscale.runs import manifest
from zfscale.runs.digest import digest
from zfscale.runs.ledger import Ledger
from zfscale.runs.verify import check_accounting
from zfscale.storage import open_storage


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small shards, so that there are tasks to lose."""
    folder = tmp_path_factory.mktemp("shards")
    parts.write(str(folder), count=60, seed=3, shard_size=12)
    return folder


def _spec(run: Path, shards: Path, **changes: object) -> dict[str, object]:
    return {
        "run": str(run),
        "model": "zfscale:zfnet-mini",
        "weights": "seed:0",
        "images": [str(path) for path in sorted(shards.glob("*.tar"))],
        "batch": 8,
        "analyses": {"scan": {"top_k": 3}, "deconvolve": {}},
        **changes,
    }


def _setup(spec: dict[str, object]) -> Setup:
    return resolve.resolve(job.Job.model_validate(spec))


def _run(spec: dict[str, object], executor=Serial) -> str:
    driver.run(_setup(spec), executor, lambda event: None)
    return digest(open_storage(str(spec["run"])))


@pytest.fixture(scope="module")
def clean(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed run."""
    return _run(_spec(tmp_path_factory.mktemp("clean") / "run", shards))


class Shuffled(Serial):
    """Tasks in another order."""

    def execute(self, tasks):
        tasks = list(tasks)
        random.Random(len(tasks)).shuffle(tasks)
        return super().execute(tasks)


class Twice(Serial):
    """Every task done twice, as after a worker that died before it was heard."""

    def execute(self, tasks):
        for task in tasks:
            self._worker.run(task)
            yield self._worker.run(task)


class Interrupted(Serial):
    """Ctrl-C after three tasks."""

    def execute(self, tasks) -> Iterator[Receipt | Failure]:
        for done, task in enumerate(tasks):
            if done == 3:
                raise KeyboardInterrupt
            yield self._worker.run(task)


class Counting(Serial):
    """Remembers which tasks it was given."""

    given: list[Task]

    def execute(self, tasks):
        Counting.given = list(tasks)
        return super().execute(Counting.given)


@pytest.mark.parametrize("executor", [Shuffled, Twice])
def test_order_and_repetition_change_nothing(executor, shards, clean, tmp_path) -> None:
    assert _run(_spec(tmp_path / "run", shards), executor) == clean


def test_order_of_shards_changes_nothing(shards, clean, tmp_path) -> None:
    paths = [str(path) for path in shards.glob("*.tar")]
    for order in range(3):
        random.Random(order).shuffle(paths)
        assert _run(_spec(tmp_path / f"run{order}", shards, images=paths)) == clean


def test_interrupted_runs_go_on_where_they_stopped(shards, clean, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards, analyses={"scan": {"top_k": 3}})
    with pytest.raises(KeyboardInterrupt):
        _run(spec, Interrupted)
    assert len(Ledger.take_over(open_storage(str(spec["run"]))).committed) == 3
    _run(spec, Counting)
    # A second job names just the run and its analyses.
    assert _run({"run": spec["run"], "analyses": {"deconvolve": {}}}) == clean


def test_finished_runs_have_nothing_left_to_do(shards, clean, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards)
    _run(spec)

    def refuse(setup: Setup) -> Serial:
        raise AssertionError("a worker was started for nothing")

    assert _run(spec, refuse) == clean


def test_damaged_segments_are_computed_again(shards, clean, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards)
    _run(spec)
    segment = sorted((tmp_path / "run/segments/scan").glob("*-winners-*.parquet"))[2]
    segment.write_bytes(segment.read_bytes()[:-8] + b"12345678")
    winners = next((tmp_path / "run/winners").glob("layer=conv3/*.parquet"))
    winners.unlink()
    assert _run(spec, Counting) == clean
    assert winners.exists()


def test_other_settings_are_refused(shards, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards)
    _run(spec)
    for change, named in [
        ({"batch": 4}, "batch was 8, is now 4"),
        ({"weights": "seed:1"}, "network"),
        ({"images": spec["images"][:4]}, "list of images"),
        ({"analyses": {"scan": {"top_k": 5}}}, "top_k was 3, is now 5"),
    ]:
        with pytest.raises(FingerprintMismatch, match=named):
            _run({**spec, **change})


def test_images_that_change_under_a_scan_stop_it(shards, tmp_path) -> None:
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.glob("*.tar"):
        (copy / path.name).write_bytes(path.read_bytes())
    spec = _spec(tmp_path / "run", copy)

    class Swapped(Serial):
        def execute(self, tasks):
            tasks = list(tasks)
            if tasks[0].stage == "switches":
                for path in copy.glob("*.tar"):
                    data = bytearray(path.read_bytes())
                    data[2000:2100] = bytes(100)
                    path.write_bytes(data)
            return super().execute(tasks)

    with pytest.raises(IntegrityError, match="can no longer be read as they were scanned"):
        _run(spec, Swapped)


def _command(spec: dict[str, object], path: Path, *options: str) -> list[str]:
    path.write_text(json.dumps(spec))  # YAML holds JSON
    return [sys.executable, "-m", "zfscale", "run", str(path), *options]


def _killed_after(command: list[str], run: Path, receipts: int) -> None:
    """Start a job and SIGKILL it, with everything it started, once that much is committed."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(run.glob("segments/scan/*-winners-*.parquet"))) >= receipts:
                break
            time.sleep(0.02)
        assert process.poll() is None, "the job ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("receipts", [0, 1, 4])
def test_a_killed_driver_resumes_to_the_same_digest(receipts, shards, clean, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards)
    command = _command(spec, tmp_path / "job.yaml", "--serial")
    _killed_after(command, tmp_path / "run", receipts)
    subprocess.run(command, check=True, capture_output=True)
    assert digest(open_storage(str(spec["run"]))) == clean


@pytest.mark.parametrize("step", ["withdraw", "write", "commit"])
def test_an_interrupted_republication_heals(step, shards, clean, tmp_path, monkeypatch) -> None:
    spec = _spec(tmp_path / "run", shards)
    _run(spec)
    next((tmp_path / "run/winners").glob("layer=conv3/*.parquet")).unlink()
    commit, write = Ledger.commit, view.RunView._write

    def dying_commit(self, *arguments, **options):
        if step == "commit" and options.get("published"):
            raise KeyboardInterrupt
        commit(self, *arguments, **options)
        if step == "withdraw" and options.get("withdrawn"):
            raise KeyboardInterrupt

    def dying_write(self, *arguments):
        for number, file in enumerate(write(self, *arguments)):
            if step == "write" and number == 3:
                raise KeyboardInterrupt
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", dying_commit)
        patch.setattr(view.RunView, "_write", dying_write)
        with pytest.raises(KeyboardInterrupt):
            _run(spec)
    assert _run(spec) == clean


def test_an_interrupted_run_verifies(shards, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards)

    class Stops(Serial):
        def execute(self, tasks):
            tasks = list(tasks)
            if tasks[0].stage == "deconvolve":
                raise KeyboardInterrupt
            return super().execute(tasks)

    with pytest.raises(KeyboardInterrupt):
        _run(spec, Stops)
    storage = open_storage(str(spec["run"]))
    assert check_accounting(storage, manifest.load(storage)) == Counts(60, 60)


def test_an_analysis_that_leaves_images_out_is_caught(shards, tmp_path, monkeypatch) -> None:
    batches = Feed.batches

    def one_batch(self):
        yield next(batches(self))

    monkeypatch.setattr(Feed, "batches", one_batch)
    with pytest.raises(IntegrityError, match="must use up its batches"):
        _run(_spec(tmp_path / "run", shards))


def test_deconvolve_alone_says_what_it_needs(shards, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards, analyses={"deconvolve": {}})
    with pytest.raises(UsageError, match="deconvolve works on the results of scan"):
        _run(spec)


def test_damaged_descriptions_heal(shards, clean, tmp_path) -> None:
    spec = _spec(tmp_path / "run", shards)
    _run(spec)
    (tmp_path / "run/run.json").write_text("{}")
    for group in ("switches.zarr/zarr.json", "projections.zarr/conv2/zarr.json"):
        path = tmp_path / "run" / group
        path.write_bytes(path.read_bytes().replace(b"zarr_format", b"zarr_formAt"))
    assert _run(spec) == clean
    assert '"complete"' in (tmp_path / "run/run.json").read_text()


def test_files_of_others_are_never_touched(shards, tmp_path) -> None:
    mine = tmp_path / "run/images/holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"is no run, and holds images/holiday\.jpg"):
        _run(_spec(tmp_path / "run", shards))
    mine.unlink()
    spec = _spec(tmp_path / "run", shards)
    _run(spec)
    notes = tmp_path / "run/winners/notes.csv"
    notes.write_text("precious")
    next((tmp_path / "run/winners").glob("layer=conv3/*.parquet")).unlink()
    _run(spec)
    assert notes.read_text() == "precious"
    with pytest.raises(UsageError, match="lie one inside the other"):
        _run(_spec(shards / "run", shards, images=str(shards)))
    with pytest.raises(UsageError, match="leave images out of a job that does not scan"):
        _run({**spec, "images": spec["images"][:1], "analyses": {"deconvolve": {}}})


def test_what_cannot_be_deconvolved_is_told_before_the_scan(shards, tmp_path, monkeypatch) -> None:
    (tmp_path / "soft.py").write_text(
        "from torch import nn\n"
        "from zfscale.records import Preprocessing\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Conv2d(4, 4, 3))\n"
        "    return net, Preprocessing(16, (16, 16), (127.0,) * 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = _spec(tmp_path / "run", shards, model="soft:build")
    with pytest.raises(UnsupportedOperation, match=r"[Ss]oftmax"):
        _run(spec)
    assert not list((tmp_path / "run").glob("segments/*/*"))
    _run({**spec, "analyses": {"scan": {"top_k": 3}}})
