"""What is checked of a run: every file, run.json, and that no image vanished."""

import random
from dataclasses import replace

import numpy as np
import pytest
from stored import write

from zfscale.analyses.scan.tables import IMAGES
from zfscale.errors import IntegrityError
from zfscale.records import Array, Block, Counts, Receipt
from zfscale.runs import arrays, record
from zfscale.runs import manifest as manifests
from zfscale.runs.ledger import Ledger, Planned
from zfscale.runs.verify import check_accounting, check_record, find_damage
from zfscale.storage.base import checksum, file

ARRAY = Array("projections.zarr/conv1", (4, 2, 3, 3, 3), "float32", 2, 0)


@pytest.fixture
def whole_run(storage, winners, receipt):
    """Segments, an array and tables of two analyses; the ledger."""
    table, rows = winners
    planned = {"scan": Planned("scan"), "deconvolve": Planned("deconvolve")}
    ledger = Ledger.open(storage, {"model": "m"}, planned)
    ledger.commit("scan", [receipt(storage, 1), receipt(storage, 2, 5)])
    meta = arrays.create(storage, ARRAY)
    shard = arrays.write(storage, Block(ARRAY, 2, np.ones((2, *ARRAY.shape[1:]), np.float32)))
    ledger.commit("deconvolve", [Receipt("one", shard, Counts(), 1.0)])
    files = write(storage, [(table, rows(9))], ledger.manifest.run_id)
    ledger.publish("scan", files, "hash", Counts())
    ledger.publish("deconvolve", meta, "hash", Counts())
    return ledger


def owners(manifest):
    """The analysis and the task of every file."""
    return {
        file.path: (name, task)
        for name, state in manifest.analyses.items()
        for task, files in [
            *((receipt.task, receipt.files) for receipt in state.receipts()),
            (None, state.published.values()),
        ]
        for file in files
    }


def test_a_flipped_bit_is_found_in_any_file(storage, whole_run):
    manifest = manifests.load(storage)
    assert find_damage(storage, manifest) == []
    check_record(storage, manifest)
    belongs = owners(manifest)
    paths = [path for path in storage.list() if not path.startswith("manifest/")]
    assert len(paths) == 8
    for path in paths:
        good = storage.read(path)
        bad = bytearray(good)
        bad[random.Random(path).randrange(len(bad))] ^= 1
        storage.publish(path, bytes(bad))
        if path == "run.json":
            with pytest.raises(IntegrityError, match=r"run\.json is not what manifest 5 says"):
                check_record(storage, manifest)
        else:
            (damage,) = find_damage(storage, manifest)
            assert (damage.file.path, damage.file.sha256) == (path, file(path, good).sha256)
            assert (damage.sha256, damage.size) == checksum(storage, path)
            assert (damage.analysis, damage.task) == belongs[path]
            assert path in str(damage)
        storage.publish(path, good)
    assert find_damage(storage, manifest) == []


def test_missing_and_cut_files_are_found(storage, whole_run):
    manifest = manifests.load(storage)
    one, two = (receipt.files[0] for receipt in manifest.analyses["scan"].receipts())
    storage.delete(one.path)
    storage.publish(two.path, storage.read(two.path)[:-1])
    damages = find_damage(storage, manifest)
    assert [damage.file for damage in damages] == [one, two]
    assert damages[0].sha256 is None
    assert "is missing" in str(damages[0])
    assert f"({two.size - 1} bytes)" in str(damages[1])


def test_damage_of_chosen_analyses_alone(storage, whole_run):
    manifest = manifests.load(storage)
    for path in owners(manifest):
        storage.delete(path)
    found = find_damage(storage, manifest, ["deconvolve"])
    assert {damage.analysis for damage in found} == {"deconvolve"}
    assert len(found) == 3
    assert len(find_damage(storage, manifest)) == 7
    assert find_damage(storage, manifest, []) == []


def test_a_record_that_is_missing_or_older_is_told(storage, whole_run):
    manifest = manifests.load(storage)
    storage.publish(record.PATH, record.encode(replace(manifest, number=manifest.number - 1)))
    with pytest.raises(IntegrityError, match="run the job again"):
        check_record(storage, manifest)
    storage.delete(record.PATH)
    with pytest.raises(IntegrityError, match=r"run\.json"):
        check_record(storage, manifest)
    record.write(storage, manifest)
    check_record(storage, manifest)


def images(statuses):
    """Rows of the table `images` that ended so; all else is made up."""
    count = len(statuses)
    columns = {
        column.name: np.full(count, "x", object)
        if column.type == "string"
        else np.ma.masked_array(np.arange(count), dtype=column.type)
        for column in IMAGES.columns
    }
    return columns | {"status": np.array(statuses, object)}


def scanned(storage, statuses, counts, name="scan"):
    """A run with a scan that counted so, and the table that it published."""
    table = "images" if name == "scan" else f"{name}_images"
    planned = Planned("scan", metadata={"images": table})
    ledger = Ledger.open(storage, {}, {name: planned, "other": Planned("occlusion")})
    files = write(storage, [(IMAGES, images(statuses))], "r", {"images": table}.__getitem__)
    ledger.publish(name, files, "hash", counts)
    ledger.publish("other", [], "hash", Counts(7, ok=7))
    return manifests.load(storage)


@pytest.mark.parametrize("name", ["scan", "deep"])
def test_images_add_up(storage, name):
    counts = Counts(6, ok=3, quarantined=1, duplicate=2)
    statuses = ["ok", "duplicate", "ok", "quarantined", "duplicate", "ok"]
    assert check_accounting(storage, scanned(storage, statuses, counts, name)) == {name: counts}


@pytest.mark.parametrize(
    "statuses", [["ok"] * 3, ["ok"], ["ok", "duplicate"], ["ok", "ok", "quarantined"], []]
)
def test_an_image_that_vanished_or_came_from_nowhere_is_told(storage, statuses):
    manifest = scanned(storage, statuses, Counts(2, ok=2))
    with pytest.raises(IntegrityError, match=r"scan counted .*'ok': 2.*its table images holds"):
        check_accounting(storage, manifest)


def test_a_scan_without_a_table_has_lost_its_images(storage):
    ledger = Ledger.open(storage, {}, {"scan": Planned("scan", metadata={"images": "images"})})
    assert check_accounting(storage, ledger.manifest) == {}
    ledger.publish("scan", [], "hash", Counts(1, ok=1))
    with pytest.raises(IntegrityError, match="scan counted"):
        check_accounting(storage, ledger.manifest)
