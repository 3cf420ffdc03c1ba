"""A format from another package, found by its entry point alone."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tinyjobs
from collected import collect, read_all

import zfscale
from zfscale import collection as sources
from zfscale.collection import formats
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import ImageRef, Reason

MODULE = '''
"""Files of base64 lines: one image a line."""

import base64

from zfscale.records import ImageRef, Reason, Sample, Shard
from zfscale.storage import files

SUFFIXES = (".lines",)


def shards(places):
    entries = [entry for place in places for entry in place.files]
    return [Shard("lines", entry.uri, entry.size, entry.version) for entry in entries]


def index(shard, warn):
    start = 0
    for number, line in enumerate(files.read_whole(shard.uri).splitlines(keepends=True)):
        reason = None if line.strip().isalnum() else Reason.CORRUPT
        ref = ImageRef(shard.uri, start, len(line.strip()))
        yield Sample(number, f"line {number}", number % 2, ref, reason=reason)
        start += len(line)


def read(shard, samples):
    for sample in samples:
        data = files.read_range(sample.ref.uri, sample.ref.offset, sample.ref.length)
        yield Sample(sample.index, sample.key, sample.label, sample.ref, data)


def class_names(shards):
    return ["even", "odd"]


def records(uri, refs):
    for ref in refs:
        yield ref, b'{"line": true}'
'''


CODED = '''
"""Files of base64 lines that have to be decoded: no image is a range of bytes."""

import base64
from dataclasses import replace

from zfscale.records import ImageRef, Sample, Shard
from zfscale.storage import files

SUFFIXES = (".coded",)


def shards(places):
    entries = [entry for place in places for entry in place.files]
    return [Shard("coded", entry.uri, entry.size, entry.version) for entry in entries]


def index(shard, warn):
    for row, _ in enumerate(files.read_whole(shard.uri).splitlines()):
        yield Sample(row, f"line {row}", row % 2, ImageRef(shard.uri, row_group=7, row=row))


def read(shard, samples):
    for sample in samples:
        yield replace(sample, data=fetch(sample.ref))


def fetch(ref):
    lines = files.read_whole(ref.uri).splitlines()
    return base64.b64decode(lines[ref.row]) if ref.row < len(lines) else None


def class_names(shards):
    return None


def records(uri, refs):
    return ()
'''


@contextmanager
def installed(name: str, text: str, site: Path) -> Iterator[None]:
    """An installed package with this module and its entry point."""
    info = site / f"{name}_format-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}_format.py").write_text(textwrap.dedent(text))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zfscale.sources]\n{name} = {name}_format\n")
    caches = (formats.get, formats._plugins)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(site))
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def package(tmp_path: Path) -> Iterator[None]:
    with installed("lines", MODULE, tmp_path / "site"):
        yield


def test_a_format_is_one_file_of_another_package(package: None, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    (images / "deep" / "a.lines").write_bytes(b"Zmlyc3Q\n????\nc2Vjb25k\n")
    (images / "preview.jpg").write_bytes(b"beside containers")
    assert formats.names() == ["folder", "lines", "parquet", "webdataset"]
    samples = read_all(images)
    assert [(sample.key, sample.label, sample.data, sample.reason) for sample in samples] == [
        ("line 0", 0, b"Zmlyc3Q", None),
        ("line 1", 1, None, Reason.CORRUPT),
        ("line 2", 0, b"c2Vjb25k", None),
    ]
    assert sources.fetch(samples[2].ref) == b"c2Vjb25k"
    shards = [each.shard for each in collect(images)]
    assert [shard.format for shard in shards] == ["lines"]
    assert sources.class_names(shards) == ["even", "odd"]
    ((ref, record),) = sources.records([samples[0].ref])
    assert ref == samples[0].ref
    assert json.loads(record) == {"line": True}
    assert sources.check_format("lines") == "lines"


@pytest.mark.parametrize(("name", "kind"), [("a.coded", None), ("a.parquet", "coded")])
def test_a_format_reads_again_what_it_refers_to(name: str, kind: str | None, tmp_path) -> None:
    """A whole job: the scan reads a shard, the switches the winners, a reader single images."""
    (tmp_path / "images").mkdir()
    images = [tinyjobs.image(seed) for seed in range(6)]
    (tmp_path / "images" / name).write_bytes(b"\n".join(map(base64.b64encode, images)))
    with installed("coded", CODED, tmp_path / "site"):
        spec = tinyjobs.spec(tmp_path / "run", tmp_path, images=str(tmp_path / "images" / name))
        tinyjobs.run(spec | {"format": kind})
        results = zfscale.open(tmp_path / "run")
        assert results["deconvolve"].state.value == "complete"
        winner = results.winners["image_id"].iloc[0]
        assert results.image(winner).shape == (16, 16, 3)
        ref = ImageRef(str(tmp_path / "images" / name), row_group=7, row=3)
        assert sources.fetch(ref, kind) == images[3]
        with pytest.raises(IntegrityError, match="no image there"):
            sources.fetch(replace(ref, row=6), kind)


def test_an_unknown_format_lists_what_there_is(package: None) -> None:
    with pytest.raises(UsageError, match="'zip' is unknown; there are folder, lines, parquet, web"):
        sources.check_format("zip")


def test_every_built_in_format_holds_the_protocol() -> None:
    members = [name for name in vars(formats.Format) if not name.startswith("_")]
    assert members == ["shards", "index", "read", "class_names", "records"]
    for name in formats.names():
        module = formats.get(name)
        assert all(callable(getattr(module, member)) for member in members)
        assert all(suffix.startswith(".") for suffix in module.SUFFIXES)
