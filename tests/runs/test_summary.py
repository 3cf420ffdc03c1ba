"""The summary of a run: how far each analysis came, how to go on, and how the images ended."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from zfscale.records import Counts, File
from zfscale.runs.ledger import Ledger, Planned
from zfscale.runs.manifest import State
from zfscale.runs.summary import ImageSummary, count_images, summarise

SHA = "0123456789abcdef" * 4


def test_every_analysis_in_the_order_in_which_it_was_begun(storage, receipt):
    needs = {"scan": "scan"}
    kinds = {"scan": "scan", "wide": "occlusion", "small": "occlusion", "curves": "invariance"}
    planned = {
        name: Planned(kind, needs=needs if name != "scan" else {}) for name, kind in kinds.items()
    }
    ledger = Ledger.open(storage, {}, planned, command="zfscale run job.yaml")

    given = [receipt(storage, number, images=3) for number in range(2)]
    ledger.start("scan", {})
    ledger.commit("scan", given)
    files = [File("images/a", SHA, 100, "images", 6), File("winners/a", SHA, 20, "winners", 4)]
    ledger.publish("scan", files, "scan 1", Counts(6, 5, 1))
    ledger.end("scan", State.COMPLETE, 12.5)
    for name in ("wide", "small"):
        ledger.start(name, {"scan": "scan 1"})
    ledger.publish("wide", [], "wide 1", Counts())
    ledger.end("wide", State.COMPLETE, 1.0)
    one = receipt(storage, 3, name="small")
    ledger.commit("small", [one])
    ledger.end("small", State.FAILED, 2.0, "the disk is full")

    scan, wide, small, curves = summarise(ledger.manifest)
    assert [each.name for each in (scan, wide, small, curves)] == list(kinds)
    assert [each.kind for each in (scan, wide, small, curves)] == list(kinds.values())
    assert (scan.state, scan.tasks, scan.counts) == ("complete", 2, Counts(6, 5, 1))
    assert (scan.rows, scan.size, scan.seconds) == (10, 120, 12.5)
    assert scan.kept == sum(receipt.files[0].size for receipt in given)
    assert (scan.error, scan.command) == (None, None)
    # Nothing is published: what is committed counts.
    assert (small.state, small.tasks, small.counts) == ("failed", 1, Counts(2, ok=2))
    assert (small.rows, small.size, small.kept) == (1, 0, one.files[0].size)
    assert (small.error, small.command) == ("the disk is full", "zfscale run job.yaml")
    assert (curves.state, curves.tasks, curves.command) == ("planned", 0, "zfscale run job.yaml")
    assert (wide.state, wide.command) == ("complete", None)

    # Parts of arrays are written by tasks, and stay where they are.
    block = File("maps.zarr/conv1/c/0", SHA, 1000)
    ledger.start("curves", {"scan": "scan 1"})
    ledger.commit("curves", [replace(receipt(storage, 4, name="curves"), files=(block,))])
    ledger.publish("curves", [File("maps.zarr/conv1/zarr.json", SHA, 7)], "curves 1", Counts())
    assert summarise(ledger.manifest)[3].size == 1007

    ledger.publish("scan", files, "scan 2", Counts(6, 5, 1))
    _, wide, small, _ = summarise(ledger.manifest)
    assert (wide.state, wide.command) == ("outdated", "zfscale run job.yaml")


def images(rows: list[tuple[str, str | None, int | None]]) -> ds.Dataset:
    """The columns of the table `images` that are counted, in batches of two rows."""
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    types = (pa.string(), pa.string(), pa.int64())
    arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
    table = pa.table(arrays, names=["status", "reason", "true_class_rank"])
    return ds.dataset(pa.Table.from_batches(table.to_batches(max_chunksize=2), table.schema))


def test_images_are_counted_by_how_they_ended():
    """Errors are over the labelled images: three of five were wrong, one not even among five."""
    bad = ("quarantined", "not_an_image", None), ("quarantined", "too_large", None)
    ok = [("ok", None, rank) for rank in (0, 4, None, 5, 0, 1)]
    found = count_images(images([*bad, *ok, ("duplicate", None, None), bad[1]]))
    assert found == ImageSummary(6, 3, 1, {"too_large": 2, "not_an_image": 1}, 3 / 5, 1 / 5)
    assert list(found.reasons) == ["too_large", "not_an_image"]


@pytest.mark.parametrize("rows", [[], [("ok", None, None)]])
def test_without_labels_there_is_no_error(rows):
    found = count_images(images(rows))
    assert (found.ok, found.top1, found.top5) == (len(rows), None, None)
