"""Finding shards: patterns, order, repetition, errors; and reading exactly what was counted."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import badfiles
import fsspec
import pytest
from collected import collect, index, samples_of, select

from zfscale import collection as sources
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import ImageRef, Reason, Shard


def jpeg(seed: int) -> bytes:
    return badfiles.encode(badfiles.picture(seed, (16, 16)))


def write_tar(path: Path, count: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = badfiles.TarWriter(path)
    for number in range(count):
        writer.sample(f"{number:03d}.jpg", jpeg(seed + number), number)
    writer.tar.close()


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in range(5):
        write_tar(tmp_path / "tars" / f"val-{number}.tar", 2 + number, 10 * number)
    return tmp_path / "tars"


def test_any_spelling_gives_the_same_shards(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sources.find([str(tars)])
    names = [str(tars / f"val-{number}.tar") for number in range(5)]
    assert [shard.uri for shard in expected] == names
    assert [each.images for each in collect(tars)] == [2, 3, 4, 5, 6]
    shuffled = [*names, names[2], f"file://{names[1]}"]
    random.Random(0).shuffle(shuffled)
    assert sources.find(shuffled) == expected
    assert sources.find([str(tars / "val-[0-4].tar"), names[0]]) == expected
    assert sources.find([f"file://{tars}/*.tar"]) == expected
    assert sources.find([str(tars.parent / "t*")]) == expected
    monkeypatch.chdir(tars.parent)
    assert sources.find(["tars"]) == expected
    assert sources.find(["tars/val-?.tar"]) == expected


@pytest.mark.parametrize("layout", ["webdataset", "folder"])
def test_memory_urls(layout: str, tars: Path) -> None:
    memory = fsspec.filesystem("memory")
    if layout == "webdataset":
        memory.pipe("/find/a.tar", (tars / "val-0.tar").read_bytes())
        place = "memory://find/*.tar"
    else:
        memory.pipe({"/find/pictures/cat/a.jpg": jpeg(1), "/find/pictures/dog/a.jpg": jpeg(2)})
        place = "memory://find/pictures"
    try:
        shards = collect(place)
        found = samples_of(shards)
        assert all(each.shard.uri.startswith("memory://") for each in shards)
        assert [sample.label for sample in found] == [0, 1]
        assert [sources.fetch(sample.ref) for sample in found] == [s.data for s in found]
        assert found[0].data in (jpeg(0), jpeg(1))
    finally:
        memory.rm("/find", recursive=True)


class Server(SimpleHTTPRequestHandler):
    """Files with range requests, unless told otherwise, in silence."""

    ranges = True

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        path = Path(self.translate_path(self.path))
        if not (self.ranges and wanted.startswith("bytes=") and path.is_file()):
            super().do_GET()
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        data = path.read_bytes()
        part = data[int(first) : int(last) + 1 if last else len(data)]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part)}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tars: Path) -> Iterator[str]:
    handler = functools.partial(Server, directory=str(tars))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_web(web: str, tars: Path) -> None:
    on_disk = sources.find([str(tars)])
    for place in (f"{web}/*.tar", f"{web}/"):
        shards = sources.find([place])
        assert [shard.uri for shard in shards] == [f"{web}/val-{n}.tar" for n in range(5)]
        assert [len(index(shard)["key"]) for shard in shards] == [2, 3, 4, 5, 6]
        assert [shard.size for shard in shards] == [shard.size for shard in on_disk]
    (shard,) = collect(f"{web}/val-0.tar?token=1", kind="webdataset")
    found = shard.read()
    assert [sample.data for sample in found] == [jpeg(0), jpeg(1)]
    assert sources.fetch(found[1].ref) == jpeg(1)


def test_web_without_ranges(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "ranges", False)
    with pytest.raises(UsageError, match="range requests"):
        collect(f"{web}/val-0.tar")


def test_nothing_found_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no images")
    for pattern in (str(tmp_path), str(tmp_path / "*.tar"), str(tmp_path / "absent")):
        with pytest.raises(UsageError) as caught:
            sources.find([pattern])
        for part in (repr(pattern), str(tmp_path), ".tar", ".jpg", "format"):
            assert part in str(caught.value)


def test_one_empty_pattern_among_good_ones_is_an_error(tars: Path) -> None:
    with pytest.raises(UsageError, match="absent"):
        sources.find([str(tars), str(tars / "absent*.tar")])


def test_unknown_protocol_and_format(tars: Path) -> None:
    with pytest.raises(UsageError, match="nowhere://"):
        sources.find(["nowhere://bucket/a.tar"])
    with pytest.raises(UsageError, match="folder, parquet, webdataset"):
        sources.find([str(tars)], "zip")


def test_format_overrules_names(tars: Path) -> None:
    (tars / "val-0.tar").rename(tars / "shard.bin")
    assert [each.images for each in collect(tars / "shard.bin", kind="webdataset")] == [2]
    (tars / "preview.jpg").write_bytes(jpeg(1))
    assert {shard.format for shard in sources.find([str(tars)])} == {"webdataset"}
    assert [each.images for each in collect(tars, kind="folder")] == [1]


def test_a_name_with_magic_in_it_is_itself(tmp_path: Path) -> None:
    write_tar(tmp_path / "odd[1]*.tar", 3)
    write_tar(tmp_path / "odd1.tar", 1)
    (shard,) = collect(tmp_path / "odd[1]*.tar")
    assert shard.images == 3
    assert len(shard.read()) == 3


def test_ranges_tile_a_shard(tars: Path) -> None:
    shard = collect(tars)[-1]
    whole = shard.read()
    assert [sample.key for sample in whole] == shard.rows["key"].tolist()
    for cut in range(shard.images + 1):
        assert [*shard.read(0, cut), *shard.read(cut)] == whole
    some = select(shard.rows, [1, 3])
    assert list(sources.read(shard.shard, some)) == [whole[1], whole[3]]


def test_vanished_file_is_unreadable_image_by_image(tars: Path) -> None:
    for each in collect(tars):
        Path(each.shard.uri).unlink()
        found = each.read(1)
        assert [sample.index for sample in found] == list(range(1, each.images))
        assert [sample.key for sample in found] == each.rows["key"][1:].tolist()
        assert {sample.reason for sample in found} == {Reason.UNREADABLE}


def test_forbidden_file_is_unreadable(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(uri: str, **_: object) -> object:
        raise PermissionError(uri)

    indexed = collect(tars)[1]
    monkeypatch.setattr("zfscale.storage.files.open_file", forbidden)
    assert [sample.reason for sample in indexed.read()] == [Reason.UNREADABLE] * 3
    (sample,) = samples_of(collect(indexed.shard.uri))
    assert (sample.key, sample.reason) == ("val-1.tar#0", Reason.UNREADABLE)


def test_errors_that_may_pass_are_raised(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is down must not put images in quarantine: the task is tried again."""
    shard = collect(tars)[0]

    def down(*_: object, **__: object) -> object:
        raise TimeoutError("network")

    monkeypatch.setattr("zfscale.storage.files.open_file", down)
    with pytest.raises(TimeoutError):
        shard.read()
    with pytest.raises(TimeoutError):
        sources.index(shard.shard)


def test_fetch_notices_a_changed_file(tars: Path) -> None:
    indexed = collect(tars)[0]
    shard, sample = indexed.shard, indexed.read()[1]
    assert sources.fetch(sample.ref) == sample.data
    with Path(shard.uri).open("r+b") as file:
        file.truncate(sample.ref.offset or 0)
    with pytest.raises(IntegrityError, match="val-0"):
        sources.fetch(sample.ref)
    with pytest.raises(IntegrityError):
        sources.fetch(ImageRef(shard.uri))
    Path(shard.uri).unlink()
    with pytest.raises(FileNotFoundError):
        sources.fetch(sample.ref)


def test_class_names_of_no_shards() -> None:
    assert sources.class_names([]) is None
    assert sources.class_names([Shard("webdataset", "/nowhere/a.tar", 1)]) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", '["cat", "dog"]'),
        ("classes.json", '[{"index": 1, "name": "dog"}, {"name": "cat", "index": 0}]'),
        ("classes.json", '[{"name": "cat"}, {"name": "dog"}]'),
        ("classes.txt", "cat\ndog\n\n"),
    ],
)
def test_class_names_beside_the_shards(name: str, text: str, tars: Path) -> None:
    (tars / name).write_text(text)
    assert sources.class_names(sources.find([str(tars)])) == ["cat", "dog"]


@pytest.mark.parametrize(
    "text",
    ["{", '{"0": "cat"}', "[1, 2]", '[{"id": "cat"}]', '[{"name": "cat", "index": 1}]'],
)
def test_class_names_that_make_no_sense(text: str, tars: Path) -> None:
    (tars / "classes.json").write_text(text)
    with pytest.raises(UsageError, match=r"classes\.json"):
        sources.class_names(sources.find([str(tars)]))
