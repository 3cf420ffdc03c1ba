"""One digest, whatever happens: workers, orders, interruptions, kills, damage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tinyjobs
from tinyjobs import counting, no_work, run, stopping

import zfscale
from zfscale.analyses.scan import Scan
from zfscale.engine import publish
from zfscale.engine.task_images import TaskImages
from zfscale.engine.worker import Serial
from zfscale.errors import FingerprintMismatch, IntegrityError, UnsupportedOperation, UsageError
from zfscale.records import Counts
from zfscale.runs import manifest
from zfscale.runs.digest import digest
from zfscale.runs.ledger import Ledger
from zfscale.runs.manifest import State
from zfscale.runs.verify import check_accounting, find_damage
from zfscale.storage import open_storage


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small shards, so that there are tasks to lose."""
    folder = tmp_path_factory.mktemp("shards")
    tinyjobs.write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def clean(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed run."""
    return run(tinyjobs.spec(tmp_path_factory.mktemp("clean") / "run", shards))


@pytest.fixture
def spec(shards: Path, tmp_path: Path) -> dict[str, object]:
    """The job of `clean`, for a run of one test."""
    return tinyjobs.spec(tmp_path / "run", shards)


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


@pytest.mark.parametrize("executor", [Shuffled, Twice])
def test_order_and_repetition_change_nothing(executor, spec, clean) -> None:
    assert run(spec, executor) == clean


def test_order_of_shards_changes_nothing(shards, clean, tmp_path) -> None:
    paths = [str(path) for path in shards.glob("*.tar")]
    for order in range(2):
        random.Random(order).shuffle(paths)
        assert run(tinyjobs.spec(tmp_path / f"run{order}", shards, images=paths)) == clean


def test_interrupted_runs_go_on_where_they_stopped(spec, clean) -> None:
    first = {**spec, "analyses": {"scan": {"top_k": 3}}}
    with pytest.raises(KeyboardInterrupt):
        run(first, stopping("scan", after=3))
    assert len(manifest.load(open_storage(spec["run"])).analyses["scan"].tasks) == 3
    again = counting()
    run(first, again)
    assert [task.analysis for task in again.given].count("scan") == 2
    # A second job names just the run and its analyses.
    assert run({"run": spec["run"], "analyses": {"deconvolve": {}}}) == clean


def test_finished_runs_have_nothing_left_to_do(spec, clean) -> None:
    run(spec)
    before = manifest.load(open_storage(spec["run"])).analyses
    assert run(spec, no_work) == clean
    # What took an hour does not take no time because somebody looked.
    assert manifest.load(open_storage(spec["run"])).analyses == before


def test_damaged_segments_are_computed_again(spec, clean, tmp_path) -> None:
    run(spec)
    segment = sorted((tmp_path / "run/segments/scan").glob("*-winners-*.parquet"))[2]
    segment.write_bytes(segment.read_bytes()[:-8] + b"12345678")
    winners = next((tmp_path / "run/winners").glob("layer=conv2/*.parquet"))
    winners.unlink()
    again = counting()
    assert run(spec, again) == clean
    assert winners.exists()
    assert [task.analysis for task in again.given] == ["scan"]


def test_work_on_damaged_results_is_refused_until_their_job_mends_them(spec, clean, tmp_path):
    run({**spec, "analyses": {"scan": {"top_k": 3}}})
    second = {"run": spec["run"], "analyses": {"deconvolve": {}}}
    winners = next((tmp_path / "run/winners").glob("layer=conv2/*.parquet"))
    winners.write_bytes(winners.read_bytes()[:-8] + b"12345678")
    message = "Run a job with scan again: it makes them anew"
    with pytest.raises(IntegrityError, match=message):
        run(second)
    run({**spec, "analyses": {"scan": {"top_k": 3}}}, no_work)  # from the segments
    storage = open_storage(spec["run"])
    assert find_damage(storage, manifest.load(storage)) == []
    assert run(second) == clean
    # The results of an analysis are no worse for damage to what they were made from.
    before = zfscale.open(spec["run"])["deconvolve"]
    winners.write_bytes(winners.read_bytes()[:-8] + b"12345678")
    with pytest.raises(IntegrityError, match=message):
        run(second)
    after = zfscale.open(spec["run"])["deconvolve"]
    assert (after.state, after.seconds) == (State.COMPLETE, before.seconds)


def test_a_smaller_batch_is_a_way_out_before_anything_is_computed(spec, monkeypatch) -> None:
    """The index is there already, and does not depend on it."""

    def no_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(Scan, "run", no_memory)
        with pytest.raises(UsageError, match="use a smaller one"):
            run(spec)
    assert zfscale.open(spec["run"])["index"].state == State.COMPLETE
    run({**spec, "batch": 2})


def test_other_settings_are_refused(spec) -> None:
    run(spec)
    for change, named in [
        ({"batch": 3}, r"other settings: batch: 4 → 3\. Go on .* or use a new run directory"),
        ({"weights": "seed:1"}, "network"),
        ({"images": spec["images"][:4]}, r"created from others: images: .*4\.tar"),
        ({"analyses": {"scan": {"top_k": 5}}}, "top_k: 3 → 5"),
    ]:
        with pytest.raises(FingerprintMismatch, match=named):
            run({**spec, **change})


def test_settings_that_change_no_value_do_not_matter(spec, clean) -> None:
    run(spec)
    assert (
        run({**spec, "decode_threads": 3, "workers": 7, "max_quarantined": 0.5}, no_work) == clean
    )


def test_images_that_change_under_a_scan_stop_it(shards, tmp_path) -> None:
    copy = tmp_path / "shards"
    tinyjobs.write_shards(copy)

    class Swapped(Serial):
        def execute(self, tasks):
            for task in tasks:
                if task.analysis == "switches":
                    for path in copy.glob("*.tar"):
                        data = bytearray(path.read_bytes())
                        data[600:700] = bytes(100)
                        path.write_bytes(data)
                yield self._worker.run(task)

    with pytest.raises(IntegrityError, match="can no longer be read as they were scanned"):
        run(tinyjobs.spec(tmp_path / "run", copy), Swapped)


def _killed_after(command: list[str], folder: Path, receipts: int) -> None:
    """Start a job and SIGKILL it, with everything it started, once that much is committed."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("segments/scan/*-winners-*.parquet"))) >= receipts:
                break
            time.sleep(0.005)
        assert process.poll() is None, "the job ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("receipts", [0, 1, 4])
def test_a_killed_driver_resumes_to_the_same_digest(receipts, spec, clean, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(tinyjobs.__file__).parent), prepend=os.pathsep)
    command = tinyjobs.command(spec, tmp_path / "job.yaml", "--serial")
    _killed_after(command, tmp_path / "run", receipts)
    assert run(spec) == clean


@pytest.mark.filterwarnings("error")  # and nothing is printed when it is collected
@pytest.mark.parametrize("step", ["withdraw", "write", "publish"])
def test_an_interrupted_republication_heals(step, spec, clean, tmp_path, monkeypatch) -> None:
    run(spec)
    next((tmp_path / "run/winners").glob("layer=conv2/*.parquet")).unlink()

    def dying(_module, name, before):
        original = getattr(_module, name)

        def dies(*arguments, **options):
            if not before:
                original(*arguments, **options)
            raise KeyboardInterrupt

        return dies

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(publish.tables.Writer, "close", dying(publish.tables.Writer, "close", 1))
        else:
            patch.setattr(Ledger, step, dying(Ledger, step, step == "publish"))
        with pytest.raises(KeyboardInterrupt):
            run(spec)
    scan = manifest.load(open_storage(spec["run"])).analyses["scan"]
    assert (scan.state, scan.results) == (State.INTERRUPTED, None)
    assert run(spec) == clean


def test_an_interrupted_run_verifies(spec) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(spec, stopping("deconvolve"))
    storage = open_storage(spec["run"])
    assert check_accounting(storage, manifest.load(storage)) == {"scan": Counts(20, 20)}


def test_an_analysis_that_leaves_images_out_is_caught(spec, monkeypatch) -> None:
    batches = TaskImages.batches

    def one_batch(self):
        yield next(batches(self))

    monkeypatch.setattr(TaskImages, "batches", one_batch)
    with pytest.raises(IntegrityError, match="must use up its batches"):
        run({**spec, "batch": 2})


def test_damaged_descriptions_heal(spec, clean, tmp_path) -> None:
    run(spec)
    (tmp_path / "run/run.json").write_text("{}")
    for group in ("switches.zarr/zarr.json", "projections.zarr/conv2/zarr.json"):
        path = tmp_path / "run" / group
        path.write_bytes(path.read_bytes().replace(b"zarr_format", b"zarr_formAt"))
    assert run(spec) == clean
    assert '"complete"' in (tmp_path / "run/run.json").read_text()


def test_files_of_others_are_never_touched(spec, shards, tmp_path) -> None:
    mine = tmp_path / "run/images/holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"is no run, and holds images/holiday\.jpg"):
        run(spec)
    mine.unlink()
    run(spec)
    notes = tmp_path / "run/winners/notes.csv"
    notes.write_text("precious")
    next((tmp_path / "run/winners").glob("layer=conv2/*.parquet")).unlink()
    run(spec)
    assert notes.read_text() == "precious"
    with pytest.raises(UsageError, match="lie one inside the other"):
        run(tinyjobs.spec(shards / "run", shards, images=str(shards)))


def test_what_cannot_be_deconvolved_is_told_before_the_scan(spec, tmp_path, monkeypatch) -> None:
    (tmp_path / "soft.py").write_text(
        "from torch import nn\n"
        "from zfscale.records import Preprocessing\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Conv2d(4, 4, 3))\n"
        "    return net, Preprocessing(16, (16, 16), (127.0,) * 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = {**spec, "model": "soft:build"}
    with pytest.raises(UnsupportedOperation, match=r"[Ss]oftmax"):
        run(spec)
    assert not (tmp_path / "run").exists()
    assert run({**spec, "analyses": {"scan": {"top_k": 3}}}) == digest(open_storage(spec["run"]))
