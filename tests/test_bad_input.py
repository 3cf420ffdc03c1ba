"""Bad files among good ones: each gets its outcome, sums add up, good results do not change."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import badfiles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tinyjobs
import torch
from PIL import Image
from torch import nn

import zfscale
from zfscale.engine import driver
from zfscale.engine.worker import Serial
from zfscale.errors import NonFiniteActivations
from zfscale.records import Counts, Preprocessing, Reason, Status
from zfscale.runs import manifest
from zfscale.runs.digest import digest
from zfscale.runs.verify import check_accounting
from zfscale.storage import open_storage

COLOUR = (255, 0, 255)
"""An image of this colour alone upsets the network below."""


def build() -> tuple[nn.Module, Preprocessing]:
    """A network that can be traced, and divides 0 by 0 where it sees the colour.

    Not before the second layer: in the first the colour beats all others, and is to be taken back.
    """
    recipe = Preprocessing(resize=40, crop=(32, 32), mean=(127.0, 127.0, 127.0))
    colour = torch.tensor(COLOUR) - 127.0
    first = nn.Conv2d(3, 3, 1)
    first.weight.data = torch.tensor([[1.0, -1, 1], [1, 0, 0], [0, 1, 0]])[:, :, None, None]
    first.bias.data = -(first.weight.data[:, :, 0, 0] @ colour)
    return nn.Sequential(
        first,
        nn.LocalResponseNorm(5, alpha=1.0, k=0.0),  # over all three channels
        nn.Conv2d(3, 6, 5, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ), recipe


def _plain(seed: int = 0) -> bytes:
    """The colour alone, in files that differ."""
    return badfiles.encode(Image.new("RGB", (64, 64 + seed), COLOUR), "PNG")


def _append(tar: Path, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    with tarfile.open(tar, "a") as archive:
        archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def run(tmp_path: Path):
    """The main job on some images."""

    def main_job(images: Path, name: str) -> tuple[Counts, str]:
        spec = {"run": str(tmp_path / name), "model": f"{__name__}:build", "weights": "seed:0"}
        spec |= {"images": str(images), "batch": 4}
        spec |= {"analyses": {"scan": {"top_k": 3}, "deconvolve": {}}}
        summary = driver.run(tinyjobs.resolved(spec), Serial, lambda event: None)
        storage = open_storage(spec["run"])
        assert check_accounting(storage, manifest.load(storage)) == {"scan": summary.counts}
        return summary.counts, digest(storage)

    return main_job


@dataclass(frozen=True)
class Sample:
    """An image of a collection and what becomes of it."""

    key: str
    data: bytes | None
    label: int | None
    outcome: Reason | None = None
    duplicate: bool = False

    @property
    def used(self) -> bool:
        return self.outcome is None and not self.duplicate


def _samples() -> list[Sample]:
    """Every kind of bad file, each behind a good one, and a copy of one of those at the end."""
    samples = []
    for at, case in enumerate(badfiles.cases()):
        good = badfiles.encode(badfiles.picture(1000 + at))
        samples.append(Sample(f"{at:03d}-0-good.jpg", good, at % 10))
        samples.append(Sample(f"{at:03d}-1-{case.name}", case.data, at % 10, case.outcome))
    samples.append(Sample("900-plain.png", _plain(), 3, Reason.NON_FINITE))
    return [*samples, Sample("901-copy.jpg", samples[6].data, 3, duplicate=True)]


def _folder(at: Path, good_only: bool) -> list[Sample]:
    """Single files with their labels in a file."""
    samples = [sample for sample in _samples() if sample.used or not good_only]
    for sample in samples:
        (at / sample.key).write_bytes(sample.data)
    lines = [f"{sample.key} {sample.label}" for sample in samples]
    (at / "labels.txt").write_text("\n".join(lines))
    return samples


def _parquet(at: Path, good_only: bool) -> list[Sample]:
    """Three files of several row groups."""
    bare = [Sample(f"90{n}-null.jpg", None, 3, Reason.NO_IMAGE) for n in (2, 3)]
    samples = [sample for sample in [*_samples(), *bare] if sample.used or not good_only]
    size = 1 + len(samples) // 3
    for file in range(3):
        part = samples[file * size : (file + 1) * size]
        cells = [{"bytes": sample.data, "path": sample.key} for sample in part]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        labels = [sample.label for sample in part]
        table = pa.table({"image": pa.array(cells, kind), "label": labels})
        pq.write_table(table, at / f"{file}.parquet", row_group_size=9)
    return samples


def _tars(at: Path, good_only: bool) -> list[Sample]:
    """Also what only a tar can hold: one tar of it, dealt out to four without cutting a sample."""
    whole = at.parent / f"{at.name}.tar"
    if good_only:
        badfiles.write_good_tar(at / "good.tar")
        return []
    expected = badfiles.write_tar(whole)
    _append(whole, "one_colour.png", _plain())
    with ExitStack() as stack:
        archive = stack.enter_context(tarfile.open(whole))
        shards = [stack.enter_context(tarfile.open(at / f"{n}.tar", "w")) for n in range(4)]
        members = archive.getmembers()
        place = 0
        for _, group in groupby(members, lambda member: member.name.partition(".")[0]):
            shard = shards[place * len(shards) // len(members)]
            for member in group:
                shard.addfile(member, archive.extractfile(member) if member.isreg() else None)
                place += 1
    found = [Sample(e.key, b"", e.label, e.outcome, e.duplicate) for e in expected]
    return [*found, Sample("one_colour", b"", None, Reason.NON_FINITE)]


@pytest.mark.parametrize(("write", "shards"), [(_tars, 4), (_folder, 1), (_parquet, 3)])
def test_bad_files_among_good_ones(write, shards: int, run, tmp_path: Path) -> None:
    for name in ("mixed", "good"):
        (tmp_path / name).mkdir()
    samples = write(tmp_path / "mixed", False)
    write(tmp_path / "good", True)
    counts, mixed = run(tmp_path / "mixed", "mixed_run")
    good_counts, good = run(tmp_path / "good", "good_run")
    assert mixed == good

    ok, copies = sum(sample.used for sample in samples), sum(s.duplicate for s in samples)
    bad = len(samples) - ok - copies
    assert bad >= 40
    assert good_counts == Counts(images=ok, ok=ok)
    assert counts == Counts(len(samples), ok, bad, copies, non_finite=1)

    results = zfscale.open(str(tmp_path / "mixed_run"))
    rows = results.images
    found = Counter(zip(rows["key"], rows["status"], rows["reason"].fillna(""), strict=True))
    assert found == Counter(_row(sample) for sample in samples)
    homes = rows["uri"].map(lambda uri: Path(uri).parent if shards == 1 else uri)
    quarantined = rows["status"] == Status.QUARANTINED
    assert homes[quarantined].nunique() == homes.nunique() == shards
    assert all(results.projection("5", feature).any() for feature in range(3))


def _row(sample: Sample) -> tuple[str, str, str]:
    if sample.outcome is not None:
        return sample.key, Status.QUARANTINED.value, sample.outcome.value
    status = Status.DUPLICATE if sample.duplicate else Status.OK
    return sample.key, status.value, ""


def test_copies_in_another_shard_count_once(run, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        for at in range(6):
            data = badfiles.encode(badfiles.picture(number * 6 + at))
            _append(folder / f"{number}.tar", f"{number}-{at}.jpg", data)
    once, expected = run(folder, "once")
    for at in (1, 4):  # copies of images of the first shard, in the last one
        _append(folder / "2.tar", f"copy-{at}.jpg", badfiles.encode(badfiles.picture(at)))
    twice, found = run(folder, "twice")
    assert found == expected
    assert once == Counts(18, 18)
    assert twice == Counts(20, 18, 0, 2)
    rows = zfscale.open(str(tmp_path / "twice")).images
    assert rows[rows["status"] == "duplicate"]["key"].tolist() == ["copy-1", "copy-4"]


def test_many_non_finite_images_blame_the_weights(run, tmp_path: Path) -> None:
    badfiles.write_good_tar(tmp_path / "good.tar")
    for number in range(3):
        _append(tmp_path / "good.tar", f"one_colour{number}.png", _plain(number))
    with pytest.raises(NonFiniteActivations, match=r"3 of \d+ images .* check the weights"):
        run(tmp_path / "good.tar", "bad")


def test_nothing_but_bad_files(run, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        _append(tmp_path / "bad.tar", name, b"")
    counts, _ = run(tmp_path / "bad.tar", "bad")
    assert counts == Counts(2, 0, 2)
    results = zfscale.open(str(tmp_path / "bad"))
    assert results.images["reason"].tolist() == ["empty", "empty"]
    assert results.features["dead"].all()
