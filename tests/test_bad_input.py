"""Bad files among good ones: each gets its outcome, sums add up, good results do not change."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import badfiles
import pytest
from PIL import Image

import zfscale
from zfscale import driver, job, view
from zfscale.errors import NonFiniteActivations
from zfscale.records import Counts, Reason, Status
from zfscale.stores.digest import digest
from zfscale.stores.storage import open_storage
from zfscale.worker import Serial

NET = '''
"""A network that divides by the contrast of its input: an image of one colour gives 0 / 0."""
import torch
from torch import nn
from zfscale.records import Preprocessing


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, stride=2)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = x - x.amin((1, 2, 3), keepdim=True)
        y = torch.relu(self.conv1(x / x.amax((1, 2, 3), keepdim=True)))
        return self.fc(torch.relu(self.conv2(y)).mean((2, 3)))


def build():
    return Net(), Preprocessing(resize=40, crop=(32, 32), mean=(127.0, 127.0, 127.0))
'''


def _plain(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (seed,) * 3).save(file, "PNG")
    return file.getvalue()


def _append(tar: Path, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    with tarfile.open(tar, "a") as archive:
        archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Scan some images with a network that one-coloured images upset."""
    (tmp_path / "divides.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)

    def scan(images: Path, name: str) -> tuple[Counts, str]:
        spec = {"run": str(tmp_path / name), "model": "divides:build", "weights": "seed:0"}
        spec |= {"images": str(images), "batch": 4, "analyses": {"scan": {"top_k": 3}}}
        summary = driver.run(view.resolve(job.Job.model_validate(spec)), Serial, lambda e: None)
        return summary.counts, digest(open_storage(spec["run"]))

    return scan


def test_bad_files_among_good_ones(run, tmp_path: Path) -> None:
    expected = badfiles.write_tar(tmp_path / "mixed.tar")
    _append(tmp_path / "mixed.tar", "one_colour.png", _plain(40))
    badfiles.write_good_tar(tmp_path / "good.tar")
    counts, mixed = run(tmp_path / "mixed.tar", "mixed")
    clean_counts, clean = run(tmp_path / "good.tar", "good")
    assert mixed == clean
    assert clean_counts == Counts(images=clean_counts.ok, ok=clean_counts.ok)

    kinds = Counter(e.outcome for e in expected)
    duplicates = sum(e.duplicate for e in expected)
    assert len(badfiles.cases()) >= 26
    bad = sum(kinds.values()) - kinds[None] + 1
    ok = kinds[None] - duplicates
    assert counts == Counts(ok + bad + duplicates, ok, bad, duplicates, non_finite=1)

    rows = zfscale.open(str(tmp_path / "mixed")).images
    assert len(rows) == counts.images
    found = Counter(zip(rows["key"], rows["status"], rows["reason"].fillna(""), strict=True))
    wanted = Counter(_row(e) for e in expected)
    wanted["one_colour", Status.QUARANTINED.value, Reason.NON_FINITE.value] += 1
    assert found == wanted


def _row(e: badfiles.Expected) -> tuple[str, str, str]:
    if e.outcome is not None:
        return e.key, Status.QUARANTINED.value, e.outcome.value
    status = Status.DUPLICATE if e.duplicate else Status.OK
    return e.key, status.value, ""


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
