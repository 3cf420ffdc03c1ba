"""A run in Python: its tables as DataFrames, its arrays as numpy, its images as pixels.

Reads what a job published, in a directory or at any fsspec URL, and computes nothing but the
cutting of patches. Runs no network; tables and arrays load when first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import zarr
from numpy.typing import NDArray

from zfscale import collection as sources
from zfscale.collection.decode import decode
from zfscale.errors import IntegrityError, UsageError, ZfscaleError
from zfscale.records import Box, ImageRef, Layer, Preprocessing, Status, image_id, published_name
from zfscale.runs import record as runs
from zfscale.runs import tables as stored
from zfscale.storage import open_storage


class AnalysisResults:
    """What a run holds of one named analysis.

    `kind`, `options`, `state` (planned, running, complete, failed or interrupted), `error`,
    `counts` (images), `seconds` and `metadata` are as the run recorded them. `is_readable` says
    whether all its tables are there and belong together. A table is an attribute, with the name of
    the kind left out in front: `run["occlusion"].images` is the table `occlusion_images`.
    """

    def __init__(self, results: Results, name: str) -> None:
        state = results.record.analyses[name]
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
        self.is_outdated = name in results.record.outdated
        self.is_readable = results.record.is_readable(name)
        self._results, self._published = results, state.published

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
                raise AttributeError(f"no {name!r}: {self._reason(name)}")
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
            raise UsageError(f"{self._results.run}: {self._reason(name)}")
        paths = [file.path for file in self._published.values() if file.table == name]
        return stored.dataset_of(self._results.storage, paths)

    def _attribute(self, table: str) -> str:
        return table.removeprefix(f"{self.kind}_")

    def _reason(self, table: str) -> str:
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


class Results:
    """The results of a run, whatever is complete of them.

    `run` is a directory or URL that holds `run.json`; `record` is that file. `analyses` maps the
    name of each analysis to what there is of it, and `run["NAME"]` is the same. Every table of a
    complete analysis is an attribute of its own name: `.winners`, `.features`, `.images`,
    `.occlusion`, ... Raises UsageError if there is no run.
    """

    def __init__(self, run: str) -> None:
        self.storage = open_storage(str(run))
        self.run: str = self.storage.url
        self.record = runs.read(self.storage)
        self.analyses = {name: AnalysisResults(self, name) for name in self.record.analyses}
        self.model: str = self.record.metadata["job"]["model"]
        scan = self._of_kind("scan")
        described = () if scan is None else scan.metadata.get("layers", ())
        self.layers: dict[str, Layer] = {layer["name"]: _layer(layer) for layer in described}
        index = self._of_kind("index")
        self.classes: list[str] | None = None if index is None else index.metadata.get("classes")

    def __repr__(self) -> str:
        features = sum(layer.channels for layer in self.layers.values())
        done = [name for name, each in self.analyses.items() if each.is_readable]
        left = [
            f"{name} ({each.state})" for name, each in self.analyses.items() if name not in done
        ]
        return (
            f"<zfscale run {self.run!r}: {self.model}, {len(self.layers)} layers,"
            f" {features:,} features; complete: {', '.join(done) or 'nothing'}"
            f"; not complete: {', '.join(left) or 'nothing'}>"
        )

    def __getitem__(self, name: str) -> AnalysisResults:
        """The results of the analysis of that name. Raises KeyError if the run has none."""
        try:
            return self.analyses[name]
        except KeyError:
            known = ", ".join(self.analyses)
            raise KeyError(f"this run has no analysis {name!r}; it has {known}") from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tables})

    def __getattr__(self, name: str) -> pd.DataFrame:
        """A published table of the run, loaded once. Only called where no attribute exists."""
        if name.startswith("_") or name not in self.tables:
            has = "" if name.startswith("_") else f"; {self._extent}"
            raise AttributeError(f"this run has no {name!r}{has}")
        frame: pd.DataFrame = self.dataset(name).to_table().to_pandas()
        setattr(self, name, frame)
        return frame

    @cached_property
    def tables(self) -> Mapping[str, tuple[str, str]]:
        """The published tables by their names in the run: whose they are, and how it calls them."""
        owners = {
            published_name(table, each.kind, name): (name, table)
            for name, each in self.analyses.items()
            for table in each.tables
        }
        return dict(sorted(owners.items()))

    @property
    def _extent(self) -> str:
        """What tables there are, and which analyses are missing theirs."""
        left = [
            f"{name} ({'outdated' if each.is_outdated else each.state})"
            for name, each in self.analyses.items()
            if not each.is_readable
        ]
        missing = f"; not complete: {', '.join(left)}" if left else ""
        return f"its tables are {', '.join(self.tables) or 'none'}{missing}"

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How an encoded image became the network's input."""
        stored = self.record.metadata["preprocessing"]
        values = {f.name: stored[f.name] for f in fields(Preprocessing) if f.name in stored}
        for name in ("crop", "mean", "std"):
            if name in values:
                values[name] = tuple(values[name])
        return Preprocessing(**values)

    def dataset(self, table: str) -> ds.Dataset:
        """A published table unread, for a choice of columns and filters on large runs."""
        if table not in self.tables:
            raise UsageError(f"{self.run}: no table {table!r}; {self._extent}")
        analysis, name = self.tables[table]
        return self.analyses[analysis].dataset(name)

    def winners_of(self, layer: str, feature: int) -> pd.DataFrame:
        """The winners of one feature, best first: at most k rows, fewer if fewer images."""
        self._check(layer, feature)
        frame = self._needed("scan").winners
        rows = frame[(frame["layer"] == layer) & (frame["feature"] == feature)]
        return rows.sort_values("rank", ignore_index=True)

    def projection(self, layer: str, feature: int) -> NDArray[np.float32]:
        """Deconvolved winners of a feature, (k, h, w, 3) float32 RGB (paper, section 2.1).

        In the units of the network's normalised input; zero is no evidence. h x w is the
        receptive field. One projection per winner, so k is smaller where winners are fewer.
        """
        count = len(self.winners_of(layer, feature))
        values: Any = self.projections(layer)[feature]
        return np.asarray(values[:count], dtype=np.float32)

    def projections(self, layer: str) -> zarr.Array[Any]:
        """All projections of a layer, unread: (features, k, h, w, 3) float32."""
        self._check(layer)
        return self._array("deconvolve", "projections.zarr", layer)

    def has_projections(self, layer: str) -> bool:
        """Whether the layer was deconvolved."""
        self._check(layer)
        return self._holds("deconvolve", "projections.zarr", layer)

    def switches(self, layer: str, pool: str) -> zarr.Array[Any]:
        """Switches of a pool below a layer, unread: (features, k, channels, h, w) uint8.

        Each is the offset of the maximum inside its pooling window; 255 lies outside the image.
        """
        self._check(layer)
        return self._array("switches", "switches.zarr", f"{layer}/{pool}")

    def patches(self, layer: str, feature: int) -> NDArray[np.uint8]:
        """What the winners of a feature saw: (k, h, w, 3) uint8 RGB, h x w the receptive field.

        Reads the winning images again and cuts out the box of each; where it reaches outside the
        image stands the mean colour, which the network takes for zero. Where the receptive
        field is not known, the patch is the whole input.
        """
        rows = self.winners_of(layer, feature)
        patches = [
            crop_patch(self.image(identity), box, self.preprocessing.mean_colour)
            for identity, box in zip(rows["image_id"], boxes(rows), strict=True)
        ]
        height, width = self.layers[layer].field or self.preprocessing.crop
        return np.stack(patches) if patches else np.empty((0, height, width, 3), np.uint8)

    def image(self, identity: str) -> NDArray[np.uint8]:
        """An image as the network saw it, resized and cropped: (H, W, 3) uint8 RGB.

        It is one that a table of the run speaks of: a winner, or an image of another analysis.
        Raises ZfscaleError if it is gone from where it was, IntegrityError if it has changed.
        """
        ref = self.references.get(identity)
        if ref is None:
            raise UsageError(
                f"{self.run}: image {identity!r} is in no table of this run but `images`"
            )
        try:
            data = sources.fetch(ref, self.record.metadata["job"].get("format"))
        except OSError as error:
            raise ZfscaleError(
                f"image {identity} cannot be read again from {place(ref)}: {error}; put the images"
                " back where the scan found them"
            ) from error
        if image_id(data) != identity:
            raise IntegrityError(f"image {identity}: {place(ref)} has changed since the scan")
        pixels = decode(data, self.preprocessing).pixels.permute(1, 2, 0)
        return np.ascontiguousarray(pixels.numpy())

    @cached_property
    def references(self) -> dict[str, ImageRef]:
        """Where each image lies that a table speaks of, by id, in the order of the files.

        One scan of `images`, and one of the column `image_id` of every table that has it.
        """
        names = [f.name for f in fields(ImageRef)]
        wanted = pa.array(sorted(self._mentioned()), pa.string())
        chosen = ds.field("id").isin(wanted) & (ds.field("status") == Status.OK.value)
        table = (
            self._needed("scan").dataset("images").to_table(columns=["id", *names], filter=chosen)
        )
        table = table.sort_by([(name, "ascending") for name in names])
        return {row.pop("id"): ImageRef(**row) for row in table.to_pylist()}

    def _mentioned(self) -> set[str]:
        """Ids of the images that any table speaks of, read batch by batch: some tables are long."""
        found: set[str] = set()
        for table in self.tables:
            dataset = self.dataset(table)
            if "image_id" in dataset.schema.names:
                for batch in dataset.to_batches(columns=["image_id"]):
                    found.update(pc.unique(batch["image_id"]).to_pylist())
        return found

    def _check(self, layer: str, feature: int | None = None) -> None:
        if layer not in self.layers:
            raise UsageError(
                f"{self.run}: no layer {layer!r}; its layers are {', '.join(self.layers)}"
            )
        channels = self.layers[layer].channels
        if feature is not None and not 0 <= feature < channels:
            raise UsageError(f"{layer} has no feature {feature}; it has 0 to {channels - 1}")

    def _of_kind(self, kind: str) -> AnalysisResults | None:
        """The analysis that is called like its kind, or else the first of that kind."""
        if kind in self.analyses and self.analyses[kind].kind == kind:
            return self.analyses[kind]
        return next((each for each in self.analyses.values() if each.kind == kind), None)

    def _needed(self, kind: str) -> AnalysisResults:
        analysis = self._of_kind(kind)
        if analysis is None:
            raise UsageError(
                f"{self.run}: the run has no {kind}; add `{kind}: {{}}` to the analyses of its job "
                "and run it again"
            )
        if not analysis.is_readable:
            raise UsageError(f"{self.run}: {analysis._reason(kind)}")
        return analysis

    def _path(self, kind: str, store: str) -> str | None:
        """Where an array store of an analysis lies, None where nothing of it can be read."""
        analysis = self._of_kind(kind)
        if analysis is None or not analysis.is_readable:
            return None
        return published_name(store, kind, analysis.name)

    def _holds(self, kind: str, store: str, path: str) -> bool:
        place = self._path(kind, store)
        # The name of a layer is whatever run.json says: it must not lead out of the run.
        inside = ".." not in path.split("/")
        return inside and place is not None and self.storage.exists(f"{place}/{path}/zarr.json")

    def _array(self, kind: str, store: str, path: str) -> zarr.Array[Any]:
        if not self._holds(kind, store, path):
            raise UsageError(
                f"{self.run}: there is no {store}/{path}: the run has no complete {kind} of it"
            )
        return zarr.open_array(f"{self.run}/{self._path(kind, store)}", path=path, mode="r")


def boxes(winners: pd.DataFrame) -> Iterable[Box | None]:
    """The receptive field of each winner, or None where it is not known."""
    for y0, x0, y1, x1 in winners[["y0", "x0", "y1", "x1"]].itertuples(index=False):
        yield None if pd.isna(y0) else Box(int(y0), int(x0), int(y1), int(x1))


def crop_patch(
    pixels: NDArray[np.uint8], box: Box | None, colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """The box out of an image (H, W, 3), with `colour` where the box reaches outside.

    Without a box the whole image is returned.
    """
    if box is None:
        return pixels
    y0, x0, y1, x1 = box
    height, width = pixels.shape[:2]
    patch = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    patch[:] = colour
    top, bottom = max(y0, 0), min(y1, height)
    left, right = max(x0, 0), min(x1, width)
    if top < bottom and left < right:
        patch[top - y0 : bottom - y0, left - x0 : right - x0] = pixels[top:bottom, left:right]
    return patch


def place(ref: ImageRef) -> str:
    """A reference in words, for messages."""
    if ref.row is not None:
        return f"{ref.uri}, row group {ref.row_group}, row {ref.row}"
    return ref.uri if ref.offset is None else f"{ref.uri}, byte {ref.offset}"


def _layer(stored: dict[str, Any]) -> Layer:
    values: dict[str, Any] = {f.name: stored.get(f.name) for f in fields(Layer)}
    for name in ("stride", "field"):
        if values[name] is not None:
            values[name] = tuple(values[name])
    return Layer(**values)
