"""Manifests: encoded without loss, damage found, the highest valid one counts."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Counts, File, Receipt
from zfscale.runs import manifest as manifests
from zfscale.runs import segments
from zfscale.runs.manifest import AnalysisState, Manifest, State

SHA = "0123456789abcdef" * 4


def make(number=7, receipts=(), name="scan"):
    state = AnalysisState(
        kind="scan",
        options={"k": 9},
        files={"classes": SHA},
        needs={"index": "index"},
        inputs={"index": "hash"},
        metadata={"classes": ["é"]},
        state=State.FAILED,
        results="hash",
        counts=Counts(5, 2, 2, 1, 1),
        seconds=1.25,
        error="the disk is full",
        command="zfscale run job.yaml",
        published={"winners/a.parquet": File("winners/a.parquet", SHA, 3, "winners", 2)},
        tasks={receipt.task: manifests.entry(name, receipt) for receipt in receipts},
    )
    when = "2026-01-01T00:00:00+00:00"
    fingerprint, metadata = {"model": "m", "crop": [2, 3]}, {"job": {}}
    analyses = {name: state, "other": AnalysisState("index")}
    return Manifest(number, "writer", "run", when, when, fingerprint, metadata, analyses)


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1)
files = st.builds(
    File,
    st.lists(names, min_size=2, max_size=5).map("/".join),
    st.just(SHA),
    st.integers(0),
    st.none() | names,
    st.integers(0),
)


@st.composite
def receipts(draw, name):
    task = draw(names)
    ok, duplicate, quarantined = (draw(st.integers(0, 10**6)) for _ in range(3))
    counts = Counts(ok + duplicate + quarantined, ok, quarantined, duplicate)
    segment = File(segments.path(name, task, "rows", SHA), SHA, 1, "rows", 4)
    return Receipt(task, (segment, *draw(st.lists(files, max_size=3))), counts, 1.5)


@given(st.data(), names)
def test_round_trip(data, name):
    given_receipts = data.draw(st.lists(receipts(name), max_size=4))
    manifest = make(receipts=given_receipts, name=name)
    found = manifests.decode(manifests.encode(manifest))
    assert found == manifest
    last = {receipt.task: receipt for receipt in given_receipts}
    state = found.analyses[name]
    assert {task: state.receipt(task) for task in state.tasks} == last
    expected = [file for receipt in last.values() for file in receipt.files]
    assert list(found.files()) == [*expected, *state.published.values()]


@pytest.mark.parametrize("state", list(State))
def test_every_state_comes_back(state):
    manifest = make()
    manifest = replace(manifest, analyses={"a": replace(manifest.analyses["scan"], state=state)})
    assert manifests.decode(manifests.encode(manifest)).analyses["a"].state is state


def test_the_entry_of_a_task_is_short_and_plain_json():
    segment = File(segments.path("scan", "01", "rows", SHA), SHA, 5, "rows", 3)
    shard = File("a.zarr/c/0", SHA, 7)
    receipt = Receipt("01", (segment, shard), Counts(2, ok=2), 0.12345)
    data = json.loads(manifests.encode(make(receipts=[receipt])))
    entry = data["manifest"]["tasks"]["scan"]["01"]
    files = [[None, SHA, 5, "rows", 3], ["a.zarr/c/0", SHA, 7, None, 0]]
    assert entry == [files, [2, 2, 0, 0, 0], 0.123, "scan"]


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
    monkeypatch.setattr(manifests, "FORMAT", manifests.FORMAT + 1)
    with pytest.raises(UsageError, match="another version"):
        manifests.decode(data)
