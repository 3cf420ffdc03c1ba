"""A format from another package, found by its entry point alone."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from collected import collect, read_all

from zfscale import collection as sources
from zfscale.collection import formats
from zfscale.errors import UsageError
from zfscale.records import Reason

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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with this module and its entry point."""
    site = tmp_path / "site"
    info = site / "lines_format-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "lines_format.py").write_text(textwrap.dedent(MODULE))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lines-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zfscale.sources]\nlines = lines_format\n")
    monkeypatch.syspath_prepend(str(site))
    caches = (formats.get, formats._plugins)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


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
