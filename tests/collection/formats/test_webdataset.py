"""WebDataset tars: every kind of member, every way to be cut or damaged."""

from __future__ import annotations

import gzip
import tarfile
import warnings
from pathlib import Path

import badfiles
import pytest
from collected import collect, read_all
from hypothesis import given
from hypothesis import strategies as st

from zfscale import collection as sources
from zfscale.collection.decode import Quarantine, decode_ahead
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Preprocessing, Reason


def test_every_kind_of_bad_file(tmp_path: Path, preprocessing: Preprocessing) -> None:
    expected = badfiles.write_tar(tmp_path / "mixed.tar")
    (shard,) = collect(tmp_path)
    assert shard.images == len(expected)
    stream = iter(shard.read())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wanted, (sample, outcome) in zip(
            expected, decode_ahead(stream, preprocessing, threads=2, ahead=8), strict=True
        ):
            reason = outcome.reason if isinstance(outcome, Quarantine) else None
            assert (sample.key, sample.label, reason) == (wanted.key, wanted.label, wanted.outcome)
            if reason is None:
                assert sources.fetch(sample.ref) == sample.data
    kinds = {wanted.key for wanted in expected if wanted.outcome is not None}
    assert len(kinds) >= 26


def test_good_tar_holds_what_the_mixed_one_has_of_use(tmp_path: Path) -> None:
    expected = badfiles.write_tar(tmp_path / "mixed.tar")
    badfiles.write_good_tar(tmp_path / "good.tar")
    mixed = [
        (sample.key, sample.label, sample.data)
        for wanted, sample in zip(expected, read_all(tmp_path / "mixed.tar"), strict=True)
        if wanted.outcome is None and not wanted.duplicate
    ]
    good = [(sample.key, sample.label, sample.data) for sample in read_all(tmp_path / "good.tar")]
    assert good == mixed
    assert len({data for *_, data in good}) == len(good)


def test_samples_without_an_image_stay_apart(tmp_path: Path) -> None:
    writer = badfiles.TarWriter(tmp_path / "a.tar")
    for name in ("n.txt", "n.txt", "n.cls", "n.txt", "n.jpg", "n.jpg"):
        writer.add(name, b"1")
    writer.tar.close()
    samples = read_all(tmp_path / "a.tar")  # it checks that references and keys are unique
    first, second, image, again = samples
    assert [s.reason for s in samples] == [Reason.NO_IMAGE, *[Reason.DUPLICATE_KEY] * 3]
    assert [first.ref.offset, second.ref.offset] == [512, 512 + 1024]
    assert image.ref != again.ref
    with pytest.raises(IntegrityError, match="no image there"):
        sources.fetch(second.ref)


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    writer = badfiles.TarWriter(tmp_path / "a.tar")
    for number in range(4):
        writer.sample(f"{number}.jpg", badfiles.encode(badfiles.picture(number)), number)
    writer.tar.close()
    return tmp_path / "a.tar"


def test_cut_at_every_interesting_place(tar: Path, tmp_path: Path) -> None:
    data, whole = tar.read_bytes(), read_all(tar)
    image, label = members(tar)[4:6]
    cases = {
        image.offset: (2, None),  # between members: nothing says that more was there
        image.offset + 100: (3, Reason.TRUNCATED),
        image.offset_data: (3, Reason.TRUNCATED),
        image.offset_data + image.size - 1: (3, Reason.TRUNCATED),
        image.offset_data + image.size: (3, None),
        label.offset_data: (3, None),
    }
    for cut, (count, reason) in cases.items():
        path = tmp_path / f"cut{cut}.tar"
        path.write_bytes(data[:cut])
        samples = read_all(path)
        assert len(samples) == count
        assert samples[-1].reason is reason
        assert [sample.data for sample in samples[:2]] == [sample.data for sample in whole[:2]]


def test_cut_before_the_label_leaves_the_image(tar: Path, tmp_path: Path) -> None:
    label = members(tar)[5]
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[: label.offset])
    assert [sample.label for sample in read_all(tmp_path / "cut.tar")] == [0, 1, None]


def test_damaged_header_hides_the_rest_but_is_counted(tar: Path, tmp_path: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[members(tar)[4].offset + 150] ^= 0xFF
    (tmp_path / "damaged.tar").write_bytes(data)
    reasons = [sample.reason for sample in read_all(tmp_path / "damaged.tar")]
    assert reasons == [None, None, Reason.UNREADABLE]


@pytest.mark.parametrize("data", [b"", b"x", b"<html>" * 1000, b"\xff" * 2000])
def test_not_a_tar(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    (sample,) = read_all(tmp_path / "a.tar")
    assert sample.reason is Reason.UNREADABLE


def test_tar_of_nothing_has_no_samples(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "a.tar", "w").close()
    assert read_all(tmp_path / "a.tar") == []


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_tar_is_refused_with_the_way_out(name: str, tar: Path, tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / name).write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UsageError, match=f"{name}.*decompress"):
        collect(tmp_path / "z")


def test_file_that_shrinks_after_counting(tar: Path) -> None:
    (shard,) = collect(tar)
    with tar.open("r+b") as file:
        file.truncate(members(tar)[4].offset_data + 10)
    assert [sample.reason for sample in shard.read()] == [
        None,
        None,
        Reason.TRUNCATED,
        Reason.TRUNCATED,
    ]


def test_long_and_foreign_names(tmp_path: Path) -> None:
    names = ["d" * 200 + "/" + "n" * 150, "käse/été", "with space"]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{kind}.tar"
        writer = badfiles.TarWriter(path)
        writer.tar.format = kind
        for name in names:
            writer.sample(f"{name}.jpg", b"data", 1)
        writer.tar.close()
        assert [sample.key for sample in read_all(path)] == names


def test_names_that_are_not_utf8_stay_distinct(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", encoding="latin-1") as tar:
        tar.format = tarfile.GNU_FORMAT
        for name in ("caf\xe9.jpg", "caf\xe8.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    first, second = read_all(tmp_path / "a.tar")
    assert first.key.encode() != second.key.encode()
    assert [first.reason, second.reason] == [Reason.EMPTY, Reason.EMPTY]


@given(damage=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 511), st.integers(0, 255))))
def test_no_header_makes_it_fail(damage: list[tuple[int, int, int]]) -> None:
    """Any bytes in the header of a pax block or of a member: samples or reasons, no exception."""
    import fsspec

    base = bytearray(_pax_tar())
    for block, place, value in damage:
        base[512 * 2 * block + place] = value
    for block in (0, 2):
        header = base[512 * block : 512 * block + 512]
        total = sum(header[:148]) + 8 * 32 + sum(header[156:])
        base[512 * block + 148 : 512 * block + 156] = b"%06o\0 " % total
    memory = fsspec.filesystem("memory")
    memory.pipe("/fuzz/a.tar", bytes(base))
    (shard,) = collect("memory://fuzz/a.tar")
    assert len(shard.read()) == shard.images


def _pax_tar() -> bytes:
    import io

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("é" * 60 + ".jpg")
        member.size = 10
        tar.addfile(member, io.BytesIO(b"0123456789"))
    return file.getvalue()


def test_photographs(shared_data: Path) -> None:
    shards = collect(shared_data / "imagenet-sample")
    assert sum(each.images for each in shards) == 800
    names = sources.class_names([each.shard for each in shards])
    assert names is not None
    assert names[0] == "tench"
    (sample,) = shards[0].read(0, 1)
    assert sample.label is not None
    assert names[sample.label] in sample.key
