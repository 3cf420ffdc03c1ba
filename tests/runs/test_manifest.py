"""Manifests: encoded without loss, damage found, the highest valid one counts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Counts, File, Receipt
from zfscale.runs import manifest as manifests
from zfscale.runs.manifest import Manifest

SHA = "0123456789abcdef" * 4


def make(number=7, receipts=()):
    return Manifest(
        number,
        "writer",
        "run",
        "2026-01-01T00:00:00+00:00",
        "running",
        {"model": "m", "crop": [2, 3]},
        {"scan": {"k": 9}},
        {"classes": ["é"]},
        {"winners/a.parquet": File("winners/a.parquet", SHA, 3)},
        {receipt.task: manifests.entry(receipt) for receipt in receipts},
    )


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1)
files = st.builds(
    File, st.lists(names, min_size=2, max_size=5).map("/".join), st.just(SHA), st.integers(0)
)


@st.composite
def receipts(draw):
    task = f"{draw(names)}-{draw(names)}"
    ok, duplicate, quarantined = (draw(st.integers(0, 10**6)) for _ in range(3))
    counts = Counts(ok + duplicate + quarantined, ok, quarantined, duplicate)
    segment = File(f"segments/{task.rpartition('-')[0]}/{task}-rows-{SHA[:16]}.parquet", SHA, 1)
    return Receipt(task, (segment, *draw(st.lists(files, max_size=3))), counts, 1.5)


@given(st.lists(receipts(), max_size=4))
def test_round_trip(given_receipts):
    manifest = make(receipts=given_receipts)
    found = manifests.decode(manifests.encode(manifest))
    assert found == manifest
    last = {receipt.task: receipt for receipt in given_receipts}
    assert {task: found.receipt(task) for task in found.tasks} == last


def test_a_segment_entry_is_short_and_plain_json():
    path = f"segments/scan/scan-01-rows-{SHA[:16]}.parquet"
    receipt = Receipt("scan-01", (File(path, SHA, 5),), Counts(2, ok=2), 0.12345)
    data = json.loads(manifests.encode(make(receipts=[receipt])))
    assert data["manifest"]["tasks"]["scan-01"] == [[["rows", SHA, 5]], [2, 2, 0, 0, 0], 0.123]


@given(st.data())
def test_any_flipped_bit_or_cut_is_found(data):
    encoded = manifests.encode(make())
    at = data.draw(st.integers(0, len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), encoded[:at], encoded + b"\n"):
        with pytest.raises(ValueError, match="checksum"):
            manifests.decode(damaged)


@pytest.mark.parametrize("torn", [b"", b"{}", b"garbage", None])
def test_a_damaged_highest_manifest_is_skipped_and_reported(storage, torn):
    for number in (1, 2, 10):
        storage.publish(manifests.path(number), manifests.encode(make(number)))
    data = manifests.encode(make(11))
    storage.publish(manifests.path(11), data[:-9] if torn is None else torn)
    found, damaged = manifests.latest(storage)
    assert found is not None
    assert found.number == 10
    assert damaged == ("manifest/00000011.json",)


def test_other_files_are_no_manifests(storage):
    storage.publish(manifests.path(1), manifests.encode(make(1)))
    for name in ("manifest/probe-1", "manifest/.00000009.json.1.tmp", "manifest/1.json"):
        storage.publish(name, b"")
    assert manifests.load(storage).number == 1


def test_no_run_and_no_valid_manifest(storage):
    assert manifests.latest(storage) == (None, ())
    with pytest.raises(UsageError, match="no run here"):
        manifests.load(storage)
    storage.publish(manifests.path(3), b"{}")
    with pytest.raises(IntegrityError, match="none of 1 manifests is intact"):
        manifests.load(storage)


def test_another_format_is_refused(monkeypatch):
    data = manifests.encode(make())
    monkeypatch.setattr(manifests, "FORMAT", 2)
    with pytest.raises(UsageError, match="another version"):
        manifests.decode(data)
