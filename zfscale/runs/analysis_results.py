"""What a run holds of one named analysis in Python: its tables, its arrays, and how far it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import zarr

from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Layer, array_path
from zfscale.runs import tables as stored
from zfscale.runs.record import RunRecord
from zfscale.storage.base import Storage


class AnalysisResults:
    """What a run holds of one named analysis.

    `kind`, `options`, `state` (planned, running, complete, failed or interrupted), `error`,
    `counts` (images), `seconds` and `metadata` are as the run recorded them. `is_readable` says
    whether all its tables are there and belong together. A table is an attribute, with the name of
    the kind left out in front: `run["occlusion"].images` is the table `occlusion_images`.
    """

    def __init__(self, storage: Storage, record: RunRecord, name: str) -> None:
        state = record.analyses[name]
        self.name = name
        self.kind: str = state.kind
        self.options = state.options
        self.needs = state.needs
        self.state = state.state
        self.error = state.error
        self.command = state.command
        self.counts = state.counts
        self.seconds = state.seconds
        self.metadata = state.metadata
        self.is_outdated = name in record.outdated
        self.is_readable = record.is_readable(name)
        self._storage, self._published = storage, state.published

    def __repr__(self) -> str:
        how = "outdated" if self.is_outdated else self.state.value
        tables = f"; tables {', '.join(self.tables)}" if self.tables else ""
        return f"<zfscale analysis {self.name!r}: {self.kind}, {how}{tables}>"

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(self._attribute(table) for table in self.tables)})

    def __getattr__(self, name: str) -> pd.DataFrame:
        """A table of this analysis, loaded once. Only called where no attribute exists."""
        if not name.startswith("_"):
            for table in self.tables:
                if name in (table, self._attribute(table)):
                    frame = self.table(table)
                    setattr(self, name, frame)
                    return frame
            if not self.is_readable:
                raise AttributeError(f"no {name!r}: {self.reason(name)}")
        raise AttributeError(f"the analysis {self.__dict__.get('name')} has no {name!r}")

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the published tables, as this kind of analysis calls them."""
        if not self.is_readable:
            return ()
        return tuple(sorted({f.table for f in self._published.values() if f.table is not None}))

    def table(self, name: str | None = None) -> pd.DataFrame:
        """A table as a DataFrame: the main one, which is called like the kind, or another."""
        frame: pd.DataFrame = self.dataset(name).to_table().to_pandas()
        return frame

    def dataset(self, name: str | None = None) -> ds.Dataset:
        """A table unread, for a choice of columns and filters on large runs."""
        name = name or self.kind
        if name not in self.tables:
            raise UsageError(f"{self._storage.url}: {self.reason(name)}")
        paths = [file.path for file in self._published.values() if file.table == name]
        return stored.dataset_of(self._storage, paths)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """The layers that it describes, by name in the order of the network: those of a scan."""
        return {layer["name"]: _layer(layer) for layer in self.metadata.get("layers", ())}

    def has_array(self, path: str) -> bool:
        """Whether there is an array; `path` is as its kind calls it: `projections.zarr/conv5`."""
        # The name of a layer is whatever run.json says: it must not lead out of the run.
        if not self.is_readable or ".." in path.split("/"):
            return False
        return self._storage.exists(f"{array_path(path, self.kind, self.name)}/zarr.json")

    def array(self, path: str) -> zarr.Array[Any]:
        """An array unread. Raises UsageError if there is none, IntegrityError if it is damaged."""
        place = array_path(path, self.kind, self.name)
        damaged = f"{self._storage.url}/{place}: it is missing or damaged; the job of {self.name} "
        damaged += "makes it anew, and `zfscale verify` names every file"
        if not self.has_array(path):
            if self.is_readable and f"{place}/zarr.json" in self._published:
                raise IntegrityError(damaged)
            raise UsageError(
                f"{self._storage.url}: there is no {path}: the analysis {self.name} has none of it"
                if self.is_readable
                else f"{self._storage.url}: there is no {path}: {self.reason(path)}"
            )
        store, _, inside = place.partition("/")
        try:
            return zarr.open_array(f"{self._storage.url}/{store}", path=inside, mode="r")
        except Exception as error:  # of a damaged description zarr makes errors of many kinds
            raise IntegrityError(f"{damaged} ({type(error).__name__}: {error!s:.200})") from error

    def _attribute(self, table: str) -> str:
        return table.removeprefix(f"{self.kind}_")

    def reason(self, table: str) -> str:
        """Why a table is not there."""
        if self.is_readable:
            return (
                f"the analysis {self.name} has no table {table!r}; it has "
                f"{', '.join(self.tables) or 'none'}"
            )
        if self.is_outdated:
            return f"the analysis {self.name} is outdated: what it was made from was replaced since"
        error = f": {self.error}" if self.error else ""
        return (
            f"the analysis {self.name} is not complete (state {self.state}){error}; "
            "`zfscale show` says how to go on"
        )


def _layer(stored: dict[str, Any]) -> Layer:
    values: dict[str, Any] = {f.name: stored.get(f.name) for f in fields(Layer)}
    for name in ("stride", "field"):
        if values[name] is not None:
            values[name] = tuple(values[name])
    return Layer(**values)
