"""A collection found, indexed and numbered, as a job does it, and read from its index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zfscale import collection as sources
from zfscale.records import Columns, Sample, Shard


def select(rows: Columns, wanted: Any) -> Columns:
    """Some rows of an index: a slice, or their places."""
    return {name: values[wanted] for name, values in rows.items()}


@dataclass(frozen=True)
class Collected:
    """A shard with its index."""

    shard: Shard
    rows: Columns

    @property
    def images(self) -> int:
        """Samples, the unreadable ones too."""
        return len(self.rows["position"])

    def read(self, start: int = 0, stop: int | None = None) -> list[Sample]:
        """The samples of some consecutive rows."""
        return list(sources.read(self.shard, select(self.rows, slice(start, stop))))


def collect(*places: Path | str, kind: str | None = None, warn: Any = None) -> list[Collected]:
    """All shards at some places. A warning of an index is an error unless `warn` takes it."""
    shards = sources.find([str(place) for place in places], kind)
    indices = [index(shard, warn) for shard in shards]
    numbered = sources.number_class_folders(shards, [len(rows["position"]) for rows in indices])
    return [Collected(shard, rows) for shard, rows in zip(numbered, indices, strict=True)]


def index(shard: Shard, warn: Any = None) -> Columns:
    """The index of a shard, checked for what holds of every one."""

    def fail(message: str) -> None:
        raise AssertionError(message)

    rows = sources.index(shard, warn or fail)
    count = len(rows["position"])
    assert tuple(rows) == sources.INDEX_COLUMNS
    assert {len(values) for values in rows.values()} == {count}
    assert rows["position"].tolist() == list(range(count))
    for name in ("label", "offset", "length", "row_group", "row"):
        assert isinstance(rows[name], np.ma.MaskedArray)
        assert rows[name].dtype == np.int64
    return rows


def read_all(*places: Path | str, kind: str | None = None) -> list[Sample]:
    """Every sample of all shards. Those with bytes are the same when they are fetched alone."""
    samples: list[Sample] = []
    for collected in collect(*places, kind=kind):
        found = collected.read()
        assert [sample.index for sample in found] == list(range(collected.images))
        assert all((sample.data is None) != (sample.reason is None) for sample in found)
        samples += found
    assert len({(sample.ref, sample.key) for sample in samples}) == len(samples)
    return samples


def samples_of(shards: Sequence[Collected]) -> list[Sample]:
    """Every sample of some shards."""
    return [sample for collected in shards for sample in collected.read()]
