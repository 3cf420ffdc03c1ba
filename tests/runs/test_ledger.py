"""The ledger: what is acknowledged stays, one writer at a time, one fingerprint for ever."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from zfscale.errors import FingerprintMismatch, IntegrityError, UsageError
from zfscale.records import Array, Block, Counts, File, Receipt
from zfscale.runs import arrays, tables
from zfscale.runs import manifest as manifests
from zfscale.runs import record as run
from zfscale.runs.ledger import Ledger, run_id
from zfscale.storage import open_storage
from zfscale.storage.base import file

FINGERPRINT = {"model": "alexnet", "batch": 32, "preprocessing": {"crop": (224, 224), "scale": 1.0}}


def open_ledger(storage, fingerprint=FINGERPRINT, stages=None, facts=None):
    return Ledger.open(storage, fingerprint, stages or {"scan": {"top_k": 9}}, facts)


def test_commits_add_up_and_survive_reopening(storage, receipt):
    ledger = open_ledger(storage)
    assert dict(ledger.committed) == {}
    given = [receipt(storage, f"scan-{at:02}", at) for at in range(5)]
    ledger.commit(given[:2])
    ledger.commit(given[2:4])
    assert dict(open_ledger(storage).committed) == {r.task: r for r in given[:4]}
    ledger = open_ledger(storage)
    ledger.commit(given[4:])
    assert list(open_ledger(storage).committed.values()) == given
    assert "scan-04" in ledger.committed
    assert "scan-05" not in ledger.committed


def test_counts_of_a_stage_and_of_chosen_tasks(storage, receipt):
    ledger = open_ledger(storage)
    bad = replace(receipt(storage, "scan-03"), counts=Counts(9, 5, 3, 1, 2))
    ledger.commit([receipt(storage, "scan-01"), receipt(storage, "other-02"), bad])
    assert ledger.counts("scan") == Counts(11, 7, 3, 1, 2)
    assert ledger.counts("scan", ["scan-03", "scan-09"]) == Counts(9, 5, 3, 1, 2)
    assert ledger.counts("nothing") == Counts()


def test_same_result_again_changes_nothing(storage, receipt):
    ledger = open_ledger(storage)
    one = receipt(storage, "scan-01")
    ledger.commit([one, replace(one, seconds=9.0)])
    before = storage.list("manifest")
    ledger.commit([replace(one, seconds=77.0)])
    ledger.commit()
    assert storage.list("manifest") == before
    assert ledger.committed["scan-01"].seconds == 0.5


@pytest.mark.parametrize("together", [False, True])
def test_a_second_different_result_raises_the_alarm(storage, receipt, together):
    ledger = open_ledger(storage)
    one, two = receipt(storage, "scan-01", 1), receipt(storage, "scan-01", 2)
    if not together:
        ledger.commit([one])
    with pytest.raises(IntegrityError) as caught:
        ledger.commit([one, two] if together else [two])
    for part in ("scan-01", one.files[0].sha256, two.files[0].sha256):
        assert part in str(caught.value)
    assert len(open_ledger(storage).committed) == (0 if together else 1)


def test_other_counts_raise_the_alarm(storage, receipt):
    ledger = open_ledger(storage)
    one = receipt(storage, "scan-01")
    ledger.commit([one])
    with pytest.raises(IntegrityError, match="two different results"):
        ledger.commit([replace(one, counts=Counts(3, ok=3))])


def test_another_fingerprint_is_refused_by_name(storage):
    open_ledger(storage)
    other = {**FINGERPRINT, "batch": 64, "preprocessing": {"crop": [224, 256], "scale": 1.0}}
    with pytest.raises(FingerprintMismatch) as caught:
        open_ledger(storage, other)
    text = str(caught.value)
    assert "batch was 32, is now 64" in text
    assert "preprocessing.crop was [224, 224], is now [224, 256]" in text
    assert "model" not in text
    assert caught.value.exit_code == 2
    with pytest.raises(FingerprintMismatch, match=r'device was null, is now "cuda"'):
        open_ledger(storage, {**FINGERPRINT, "device": "cuda"})


def test_options_may_change_until_a_task_is_committed(storage, receipt):
    open_ledger(storage, stages={"scan": {"top_k": 9}})
    ledger = open_ledger(storage, stages={"scan": {"top_k": 5}})
    ledger.commit([receipt(storage, "scan-01")])
    with pytest.raises(FingerprintMismatch, match=r"options of scan.top_k was 5, is now 9"):
        open_ledger(storage, stages={"scan": {"top_k": 9}})


def test_a_later_job_adds_stages(storage, receipt):
    open_ledger(storage).commit([receipt(storage, "scan-01")])
    ledger = open_ledger(storage, stages={"deconvolve": {"unpooling": "place"}})
    ledger.commit([receipt(storage, "deconvolve-01")])
    stages = run.read(storage).stages
    assert stages["scan"] == {"options": {"top_k": 9}, "tasks": 1}
    assert stages["deconvolve"] == {"options": {"unpooling": "place"}, "tasks": 1}
    with pytest.raises(FingerprintMismatch, match="options of scan"):
        open_ledger(storage, stages={"scan": {"top_k": 1}})


def test_run_record_follows_every_commit(storage):
    ledger = open_ledger(storage, facts={"layers": [{"name": "conv1"}]})
    record = run.read(storage)
    assert (record.status, record.manifest) == ("running", 1)
    assert record.run_id == run_id(ledger.manifest.fingerprint, ledger.manifest.stages)
    published = File("winners/part-00000.parquet", "0" * 64, 5)
    ledger.commit(published=[published], status="complete", facts={"classes": ["cat"]})
    record = run.read(storage)
    assert (record.status, record.manifest) == ("complete", 2)
    assert record.published == {published.path: published}
    assert record.facts == {"layers": [{"name": "conv1"}], "classes": ["cat"]}
    assert record == run.RunRecord.of(manifests.load(storage))
    open_ledger(storage)
    assert run.read(storage).status == "running"


def test_facts_may_not_hide_the_record(storage):
    with pytest.raises(ValueError, match="status"):
        open_ledger(storage, facts={"status": "fine"})


@pytest.mark.parametrize(("data", "error"), [(None, UsageError), (b"{", IntegrityError)])
def test_no_or_damaged_run_record(storage, data, error):
    if data is not None:
        storage.publish("run.json", data)
    with pytest.raises(error, match=r"run\.json"):
        run.read(storage)


def test_withdrawn_tables_are_no_longer_published(storage):
    ledger = open_ledger(storage)
    paths = ["winners/a.parquet", "winners/b.parquet", "winners2/a.parquet"]
    ledger.commit(published=[File(path, "0" * 64, 1) for path in paths])
    ledger.commit(withdrawn=["winners"], published=[File("winners/b.parquet", "1" * 64, 1)])
    assert {p: f.sha256[0] for p, f in open_ledger(storage).published.items()} == {
        "winners/b.parquet": "1",
        "winners2/a.parquet": "0",
    }


def test_who_opens_last_owns_the_run(storage, url, receipt):
    first = open_ledger(storage)
    second = open_ledger(open_storage(url))
    assert first.manifest.writer != second.manifest.writer
    with pytest.raises(IntegrityError, match="another process is writing to this run"):
        first.commit([receipt(storage, "scan-01")])
    second.commit([receipt(storage, "scan-02")])
    assert list(open_ledger(storage).committed) == ["scan-02"]


def test_of_many_racing_writers_one_wins(storage, receipt):
    ledger = open_ledger(storage)
    given = [receipt(storage, f"scan-{at:02}", at) for at in range(8)]

    def commit(one):
        rival = Ledger(storage, replace(ledger.manifest, writer=one.task))
        try:
            rival.commit([one])
        except IntegrityError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(commit, given))
    assert won.count(True) == 1
    assert list(manifests.load(storage).tasks) == [given[won.index(True)].task]


def test_a_retried_creation_is_recognised_as_our_own(storage, receipt, monkeypatch):
    ledger = open_ledger(storage)
    real = type(storage).create
    monkeypatch.setattr(type(storage), "create", lambda *args: real(*args) and False)
    ledger.commit([receipt(storage, "scan-01")])
    assert list(ledger.committed) == ["scan-01"]


def test_a_torn_manifest_is_skipped_and_the_next_goes_above_it(storage, receipt):
    ledger = open_ledger(storage)
    ledger.commit([receipt(storage, "scan-01")])
    storage.publish(manifests.path(3), b'{"sha256":"torn')
    ledger = open_ledger(storage)
    assert ledger.manifest.number == 4
    assert list(ledger.committed) == ["scan-01"]
    assert "00000003.json is damaged" in ledger.notes[0]


def test_a_stale_run_record_is_brought_up_at_opening(storage):
    open_ledger(storage)
    storage.publish("run.json", b"{")
    open_ledger(storage)
    assert run.read(storage).manifest == 2


def whole_run(storage, winners, receipt):
    """A run with segments, tables and arrays."""
    ledger = open_ledger(storage)
    table, rows = winners
    array = Array("projections.zarr/conv1", (4, 2, 3, 3, 3), "float32", 2, 0)
    meta = arrays.create(storage, array)
    data = np.ones((2, *array.shape[1:]), np.float32)
    shard = arrays.write(storage, Block(array, 2, data))
    deconvolved = Receipt("deconvolve-01", shard, Counts(), 1.0)
    ledger.commit([receipt(storage, "scan-01"), receipt(storage, "scan-02", 5), deconvolved])
    files = tables.write(storage, table, rows(9), ledger.manifest.run_id)
    ledger.commit(published=[*files, *meta], status="complete")
    return ledger


def test_verify_finds_a_flipped_bit_in_any_file(storage, winners, receipt):
    ledger = whole_run(storage, winners, receipt)
    assert ledger.verify() == []
    owners = {f.path: t for t, r in ledger.committed.items() for f in r.files}
    paths = [path for path in storage.list() if not path.startswith("manifest/")]
    assert len(paths) == 8
    for path in paths:
        good = storage.read(path)
        bad = bytearray(good)
        bad[random.Random(path).randrange(len(bad))] ^= 1
        storage.publish(path, bytes(bad))
        (damage,) = ledger.verify()
        assert (damage.file, damage.found) == (file(path, good), file(path, bytes(bad)))
        assert damage.task == owners.get(path)
        assert path in str(damage)
        storage.publish(path, good)


def test_verify_finds_missing_and_cut_files(storage, winners, receipt):
    ledger = whole_run(storage, winners, receipt)
    one, two = (r.files[0] for r in list(ledger.committed.values())[:2])
    storage.delete(one.path)
    storage.publish(two.path, storage.read(two.path)[:-1])
    damages = ledger.verify()
    assert [d.file for d in damages] == [one, two]
    assert damages[0].found is None
    assert "missing" in str(damages[0])
