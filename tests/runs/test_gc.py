"""Garbage is only what nothing refers to, and a living writer is stopped before it is deleted."""

import pytest

from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Counts, File
from zfscale.runs import gc
from zfscale.runs import manifest as manifests
from zfscale.runs.ledger import Ledger, Planned


def open_ledger(storage):
    return Ledger.open(storage, {"model": "m"}, {"scan": Planned("scan")})


def litter(storage, ledger, receipt):
    """A run with one file of each kind of garbage; paths of the garbage, paths of the rest."""
    done = receipt(storage, 1)
    ledger.commit("scan", [done])
    part = File("winners/part-00000.parquet", "0" * 64, 1)
    storage.publish(part.path, b"0")
    ledger.publish("scan", [part], "hash", Counts())
    lost = receipt(storage, 2).files[0].path
    garbage = {
        lost: "result that no commit refers to",
        "winners/part-00009.parquet": "result that no commit refers to",
        "segments/scan/.x.parquet.1.tmp": "temporary file of a killed writer",
        "manifest/probe-1": "probe of a killed writer",
        "manifest/00000009.json": "damaged manifest",
    }
    for path in list(garbage)[1:]:
        storage.publish(path, b"12")
    for number in (1, 2):
        garbage[f"manifest/{number:08}.json"] = "superseded manifest"
    kept = {"gallery/index.html", "notes.txt"}
    for path in kept:
        storage.publish(path, b"")
    return garbage, kept | {part.path, "run.json", done.files[0].path}


def test_garbage_is_listed_and_nothing_changes(storage, receipt):
    ledger = open_ledger(storage)
    litter_, _ = litter(storage, ledger, receipt)
    before = storage.sizes()
    found = gc.garbage(storage)
    assert {path: why for path, _, why in found} == litter_
    assert all(size == before[path] for path, size, _ in found)
    assert storage.sizes() == before


def test_collect_deletes_garbage_alone(storage, receipt):
    ledger = open_ledger(storage)
    litter_, kept = litter(storage, ledger, receipt)
    deleted = {path for path, _, _ in gc.collect(storage)}
    assert deleted == {*litter_, "manifest/00000003.json"}
    assert set(storage.sizes()) == kept | {"manifest/00000010.json"}
    assert gc.garbage(storage) == []
    (done,) = manifests.load(storage).analyses["scan"].receipts()
    assert done.files[0].path in kept


def test_a_living_writer_cannot_commit_what_was_collected(storage, receipt):
    ledger = open_ledger(storage)
    pending = receipt(storage, 1)
    gc.collect(storage)
    assert not storage.exists(pending.files[0].path)
    with pytest.raises(IntegrityError, match="another process"):
        ledger.commit("scan", [pending])


def test_what_was_replaced_is_garbage(storage, receipt):
    ledger = open_ledger(storage)
    done = receipt(storage, 1)
    ledger.commit("scan", [done])
    assert done.files[0].path not in {path for path, _, _ in gc.garbage(storage)}
    Ledger.open(storage, {}, {}, replaced=["scan"])
    assert done.files[0].path in {path for path, _, _ in gc.collect(storage)}
    assert not storage.exists(done.files[0].path)


def test_no_run(storage):
    with pytest.raises(UsageError, match="no run here"):
        gc.garbage(storage)
