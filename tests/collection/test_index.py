"""The index of a shard against slow literal versions, and what indexing and reading costs."""

from __future__ import annotations

import json
import os
import socket
import tarfile
import uuid
from pathlib import Path
from typing import Any

import badfiles
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collected import Collected, collect, index, read_all, samples_of, select

from zfscale import collection as sources
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import ImageRef, Reason
from zfscale.storage import files, remote

Literal = list[tuple[str, int | None, bytes]]
"""Key, label and bytes of each image."""


def literal(samples: Any) -> Literal:
    return [(sample.key, sample.label, sample.data) for sample in samples]


def write_tar(
    path: Path, count: int = 30, kind: int = tarfile.GNU_FORMAT, size: int = 40_000
) -> Literal:
    """Images of 1000 to `size` bytes with labels before or after them, long names, a folder."""
    rng = np.random.default_rng(count)
    writer = badfiles.TarWriter(path)
    writer.tar.format = kind
    writer.special("folder", tarfile.DIRTYPE)
    expected: Literal = []
    for number in range(count):
        key = f"folder/{number:03d}" if number % 3 else f"{'long' * 40}/é{number:03d}"
        data = rng.bytes(int(rng.integers(1000, size)))
        label = [f"{key}.cls", str(number).encode()]
        if number % 5 == 4:
            label = [f"{key}.json", b'{"label": %d}' % number]
        members = [[f"{key}.jpg", data], [f"{key}.txt", b"a caption"], label]
        for name, content in members[:: 1 if number % 2 else -1]:
            writer.add(name, content)
        expected.append((key, number, data))
    writer.tar.close()
    return expected


def literal_tar(path: Path) -> Literal:
    """As `tarfile` and the definition of WebDataset have it, for a tar without faults."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg():
                folder, name = os.path.split(member.name)
                stem, suffix = name.split(".", 1)
                data = tar.extractfile(member).read()
                found.setdefault(f"{folder}/{stem}", {})[suffix] = data
    for parts in found.values():
        parts.setdefault("cls", str(json.loads(parts.get("json", b"{}")).get("label")).encode())
    return [(key, int(parts["cls"]), parts["jpg"]) for key, parts in found.items()]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("where", ["disk", "store"])
def test_tar_equals_the_literal_version(kind: int, where: str, tmp_path: Path, counted) -> None:
    expected = write_tar(tmp_path / "a.tar", kind=kind)
    assert literal_tar(tmp_path / "a.tar") == expected
    place = str(tmp_path / "a.tar")
    if where == "store":
        place = upload(counted, tmp_path / "a.tar")
    (shard,) = collect(place)
    assert literal(shard.read()) == expected
    for key, label, data in expected:
        (row,) = np.flatnonzero(shard.rows["key"] == key)
        assert shard.rows["label"][row] == label
        start, length = int(shard.rows["offset"][row]), int(shard.rows["length"][row])
        assert (tmp_path / "a.tar").read_bytes()[start : start + length] == data


def test_class_folders_equal_the_literal_version(tmp_path: Path, counted) -> None:
    for number in range(40):
        folder = tmp_path / "set" / f"class {number % 7}" / ("deep" if number % 3 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.JPG").write_bytes(b"image %d" % number)
        (folder / f"{number}.txt").write_bytes(b"no image")
    (tmp_path / "set" / "class 3a" / "nothing").mkdir(parents=True)  # takes no number
    expected: Literal = []
    for folder, _, names in sorted(os.walk(tmp_path / "set")):
        for name in names:
            if name.endswith(".JPG"):
                path = Path(folder, name)
                key = path.relative_to(tmp_path / "set").as_posix()
                expected.append((key, int(key[6]), path.read_bytes()))
    expected.sort()
    assert literal(read_all(tmp_path / "set")) == expected
    assert sources.class_names([each.shard for each in collect(tmp_path / "set")]) == [
        f"class {number}" for number in range(7)
    ]
    place = upload(counted, tmp_path / "set")
    assert literal(read_all(place)) == expected


def test_parquet_equals_the_literal_version(tmp_path: Path, counted) -> None:
    rng = np.random.default_rng(0)
    cells = [{"bytes": rng.bytes(2000), "path": f"{row}.png"} for row in range(100)]
    table = pa.table({"image": cells, "label": rng.integers(0, 9, 100), "other": cells})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=13)
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    expected = [(row["image"]["path"], row["label"], row["image"]["bytes"]) for row in rows]
    assert literal(read_all(tmp_path / "a.parquet")) == expected
    place = upload(counted, tmp_path / "a.parquet")
    (shard,) = collect(place)
    assert literal(shard.read()) == expected
    np.testing.assert_array_equal(shard.rows["row_group"], np.arange(100) // 13)
    np.testing.assert_array_equal(shard.rows["row"], np.arange(100) % 13)


@pytest.mark.parametrize("statistics", [True, False])
def test_nulls_of_parquet_are_in_the_index(statistics: bool, tmp_path: Path) -> None:
    cells = [None if row % 4 == 1 else {"bytes": b"x", "path": "p"} for row in range(20)]
    cells[6] = {"bytes": None, "path": "only a path"}
    table = pa.table({"image": cells, "label": range(20)})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=7, write_statistics=statistics)
    (shard,) = collect(path)
    expected = ["no_image" if row % 4 == 1 or row == 6 else None for row in range(20)]
    assert shard.rows["reason"].tolist() == expected
    assert shard.rows["label"].tolist() == list(range(20))


def upload(store: Any, path: Path) -> str:
    """A file or folder into an object store; its URL there."""
    name = path.name
    paths = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for each in paths:
        inside = each.relative_to(path.parent).as_posix()
        store().pipe_file(f"counted://bucket/{inside}", each.read_bytes())
    store.requests.clear()
    return f"counted://bucket/{name}"


def taken(store: Any) -> tuple[int, int]:
    """Requests and bytes since the last time."""
    result = len(store.requests), sum(size for _, size in store.requests)
    store.requests.clear()
    return result


def test_a_tar_on_an_object_store_is_read_in_one_pass(tmp_path: Path, counted) -> None:
    chunk = remote.CHUNK
    expected = write_tar(tmp_path / "a.tar", 60, size=1 << 20)
    size = (tmp_path / "a.tar").stat().st_size
    place = upload(counted, tmp_path / "a.tar")
    (found,) = sources.find([place])
    assert taken(counted) == (0, 0)  # a listing opens nothing

    shard = Collected(found, index(found))
    requests, fetched = taken(counted)
    assert fetched <= size  # no byte twice
    assert requests <= -(-size // chunk)

    assert literal(shard.read()) == expected
    requests, fetched = taken(counted)
    ends = (shard.rows["offset"] + shard.rows["length"]).tolist()
    assert sum(len(data) for *_, data in expected) <= fetched
    assert fetched == ends[-1] - shard.rows["offset"][0]
    assert requests == -(-fetched // chunk)

    assert literal(shard.read(20, 30)) == expected[20:30]
    requests, fetched = taken(counted)
    assert fetched == ends[29] - shard.rows["offset"][20]
    assert requests == -(-fetched // chunk)


def test_a_record_far_before_its_image_does_not_repeat_the_pass(tmp_path: Path, counted) -> None:
    writer = badfiles.TarWriter(tmp_path / "a.tar")
    for number in range(4):
        writer.add(f"{number}.cls", b"%d" % number)
        writer.add(f"{number}.jpg", bytes(3 * remote.CHUNK))
    writer.tar.close()
    (shard,) = collect(upload(counted, tmp_path / "a.tar"))
    assert shard.rows["label"].tolist() == list(range(4))
    _, fetched = taken(counted)
    assert fetched <= (tmp_path / "a.tar").stat().st_size


def test_parquet_on_an_object_store_is_read_where_it_is_wanted(tmp_path: Path, counted) -> None:
    rng = np.random.default_rng(0)
    cells = [{"bytes": rng.bytes(50_000), "path": f"{row}.png"} for row in range(60)]
    other = [rng.bytes(50_000) for _ in range(60)]
    table = pa.table({"image": cells, "label": range(60), "other": other})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    (found,) = sources.find([upload(counted, tmp_path / "a.parquet")])
    assert taken(counted) == (0, 0)
    shard = Collected(found, index(found))
    requests, fetched = taken(counted)
    assert fetched < 150_000  # the footer, paths and labels; an image alone has 50,000
    assert len(shard.read(25, 35)) == 10
    requests, fetched = taken(counted)
    column = metadata.row_group(1).column(0)
    assert column.path_in_schema == "image.bytes"
    assert fetched < column.total_compressed_size + 150_000
    assert requests <= 6


class TestRemoteFile:
    """Any reads give the bytes that a file on disk gives; those in order fetch none twice."""

    @pytest.mark.parametrize("chunk", [0, 1, 7, 64, 1000])
    def test_equals_a_file_on_disk(self, chunk: int, tmp_path: Path, counted) -> None:
        data = np.random.default_rng(0).bytes(500)
        (tmp_path / "a").write_bytes(data)
        place = upload(counted, tmp_path / "a")
        rng = np.random.default_rng(chunk)
        with files.open_file(place, chunk=chunk) as there, (tmp_path / "a").open("rb") as here:
            for _ in range(300):
                if rng.random() < 0.4:
                    step, whence = int(rng.integers(0, 600)), int(rng.integers(0, 3))
                    step = -min(step, 500) if whence == 2 else step
                    step = step if whence != 1 else int(rng.integers(-20, 20))
                    if whence == 1 and here.tell() + step < 0:
                        continue
                    assert there.seek(step, whence) == here.seek(step, whence)
                size = int(rng.integers(-1, 120))
                assert there.read(size) == here.read(size)
                assert there.tell() == here.tell()

    @pytest.mark.parametrize("begin", [0, 137])
    def test_in_order_every_byte_is_fetched_once(self, begin: int, tmp_path, counted) -> None:
        (tmp_path / "a").write_bytes(bytes(1000))
        place = upload(counted, tmp_path / "a")
        with files.open_file(place, stop=900, chunk=64) as file:
            file.seek(begin)
            while file.tell() < 900:
                file.read(min(10, 900 - file.tell()))
        assert taken(counted) == (-(-(900 - begin) // 64), 900 - begin)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe: whoever opens it waits for a writer, forever."""
    (tmp_path / "pipes").mkdir()
    path = tmp_path / "pipes" / "a.jpg"
    os.mkfifo(path)
    return path


def test_a_pipe_as_a_place_is_refused_by_name(pipe: Path) -> None:
    os.mkfifo(pipe.with_name("a.tar"))
    for place in (pipe, pipe.with_name("a.tar"), Path("/dev/zero")):
        with pytest.raises(UsageError, match=rf"{place}.*(named pipe|device)"):
            sources.find([str(place)])


def test_pipes_and_sockets_among_images_are_no_files(pipe: Path) -> None:
    folder = pipe.parent
    (folder / "b.jpg").write_bytes(b"image")
    (folder / "c.jpg").symlink_to(pipe)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "d.jpg"))
        expected = [Reason.NOT_A_FILE, None, Reason.NOT_A_FILE, Reason.NOT_A_FILE]
        for place in (folder, folder / "*.jpg"):
            assert [sample.reason for sample in samples_of(collect(place))] == expected


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_pipe_among_containers_is_no_file(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (sample,) = samples_of(collect(tmp_path))
    assert (sample.key, sample.reason) == (f"{name}#0", Reason.NOT_A_FILE)


def test_a_file_that_becomes_a_pipe_does_not_hang(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", 3)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"image")
    found = [*collect(tmp_path / "a.tar"), *collect(tmp_path / "images")]
    good = [each.read()[0].ref for each in found]
    for path in (tmp_path / "a.tar", tmp_path / "images" / "a.jpg"):
        path.unlink()
        os.mkfifo(path)
    reasons = [[sample.reason for sample in each.read()] for each in found]
    assert reasons == [[Reason.UNREADABLE] * 3, [Reason.NOT_A_FILE]]
    for ref in good:
        with pytest.raises(Exception, match=r"named pipe.*changed"):
            sources.fetch(ref)


def test_versions_change_with_the_shard(tmp_path: Path, counted) -> None:
    write_tar(tmp_path / "a.tar", 2)
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "a.jpg").write_bytes(b"x")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(b"x")
    (tmp_path / "flat" / "labels.txt").write_text("a.jpg 1")
    remote_tar = upload(counted, tmp_path / "a.tar")

    def versions() -> list[str | None]:
        places = [tmp_path / "a.tar", tmp_path / "set", tmp_path / "flat", tmp_path / "flat/*.jpg"]
        found = [sources.find([str(place)])[0].version for place in places]
        return [*found, sources.find([remote_tar])[0].version]

    before = versions()
    assert None not in before
    assert versions() == before
    for path, later in (
        (tmp_path / "a.tar", 1),
        (tmp_path / "set" / "cat", 1),
        (tmp_path / "flat" / "labels.txt", 1),
        (tmp_path / "flat" / "a.jpg", 1),
    ):
        os.utime(path, ns=(10**18 + later, 10**18 + later))
    counted().pipe_file(remote_tar, b"other")
    after = versions()
    assert [new != old for new, old in zip(after, before, strict=True)] == [True] * 5


def test_containers_below_many_folders_are_found(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "set" / f"{number}" / "previews").mkdir(parents=True)
        (tmp_path / "set" / f"{number}" / "previews" / "a.jpg").write_bytes(b"x")
        write_tar(tmp_path / "set" / f"{number}" / "a.tar", 1)
    assert [shard.format for shard in sources.find([str(tmp_path / "set")])] == ["webdataset"] * 5
    folders = sources.find([str(tmp_path / "set")], "folder")
    assert [files.name(shard.uri) for shard in folders] == list("01234")


def test_a_tree_without_any_image_is_an_error(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "set" / f"{number}" / "deeper").mkdir(parents=True)
    for kind in (None, "folder", "webdataset"):
        with pytest.raises(UsageError, match="matches no images"):
            sources.find([str(tmp_path / "set")], kind)


def test_rows_choose_what_is_read(tmp_path: Path) -> None:
    expected = write_tar(tmp_path / "a.tar", 9)
    (shard,) = collect(tmp_path)
    assert literal(sources.read(shard.shard, select(shard.rows, [2, 7]))) == [
        expected[2],
        expected[7],
    ]
    assert list(sources.read(shard.shard, select(shard.rows, slice(0, 0)))) == []


def test_chunks_are_large() -> None:
    assert remote.CHUNK >= 4 << 20


@pytest.mark.slow
def test_s3_equals_the_disk(s3_server: str, tmp_path: Path, monkeypatch) -> None:
    """Every format, and a file that shrinks, by the requests of a real client."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    folder = tmp_path / "set"
    for name in ("tars", "classes/a/deep", "classes/b", "rows"):
        (folder / name).mkdir(parents=True)
    write_tar(folder / "tars" / "a.tar")
    badfiles.write_tar(folder / "tars" / "b.tar", 5)
    badfiles.write_bad(folder / "classes" / "a" / "deep")
    badfiles.write_bad(folder / "classes" / "b")
    cells = [{"bytes": b"%d" % row * 1000, "path": f"{row}.png"} for row in range(50)]
    pq.write_table(pa.table({"image": cells, "label": range(50)}), folder / "rows" / "a.pq")
    bucket = f"index-{uuid.uuid4().hex}"
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir(bucket)
    fs.put(str(folder), f"{bucket}/set", recursive=True)

    def outcomes(samples: Any) -> list[Any]:
        return [(s.key, s.label, s.data, s.reason, s.ref.offset, s.ref.length) for s in samples]

    for name in ("tars", "classes", "rows"):
        url = f"s3://{bucket}/set/{name}"
        found = read_all(url)
        assert outcomes(found) == outcomes(read_all(folder / name))
        assert all(sample.ref.uri.startswith(url) for sample in found)
        good = next(sample for sample in found if sample.data is not None)
        assert sources.fetch(good.ref) == good.data

    (shard, _) = collect(f"s3://{bucket}/set/tars")
    fs.pipe_file(f"{bucket}/set/tars/a.tar", (folder / "tars" / "a.tar").read_bytes()[:100_000])
    reasons = [sample.reason for sample in shard.read()]
    assert reasons[0] is None
    assert reasons[-1] is Reason.TRUNCATED
    with pytest.raises(IntegrityError, match="no image there"):
        sources.fetch(collected_ref(shard, -1))
    fs.rm_file(f"{bucket}/set/tars/a.tar")
    assert {sample.reason for sample in shard.read()} == {Reason.UNREADABLE}


def collected_ref(shard: Collected, place: int) -> ImageRef:
    """The reference of one row."""
    offset, length = (int(shard.rows[name][place]) for name in ("offset", "length"))
    return ImageRef(shard.shard.uri, offset, length)
