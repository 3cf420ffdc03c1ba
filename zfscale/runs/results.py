"""A run in Python: its tables as DataFrames, its arrays as numpy, its images as pixels.

Reads what a job published, in a directory or at any fsspec URL, and computes nothing but the
cutting of patches. Runs no network; tables and arrays load when first asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
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
from zfscale.runs.analysis_results import AnalysisResults
from zfscale.storage import open_storage

_REFERENCE = [f.name for f in fields(ImageRef)]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as a scan took it. `predicted` is the most probable class; None without classes."""

    id: str
    key: str
    label: int | None
    predicted: int | None
    probability: float | None
    ref: ImageRef


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
        self.analyses = {
            name: AnalysisResults(self.storage, self.record, name) for name in self.record.analyses
        }
        self.model: str = self.record.metadata["job"]["model"]
        scan = self._of_kind("scan")
        self.layers: Mapping[str, Layer] = {} if scan is None else scan.layers
        index = self._of_kind("index")
        self.classes: list[str] | None = None if index is None else index.metadata.get("classes")

    def __repr__(self) -> str:
        features = sum(layer.channels for layer in self.layers.values())
        done = [name for name, each in self.analyses.items() if each.is_readable]
        left = [
            f"{name} ({'outdated' if each.is_outdated else each.state})"
            for name, each in self.analyses.items()
            if name not in done
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
        return self._array("deconvolve", f"projections.zarr/{layer}")

    def has_projections(self, layer: str) -> bool:
        """Whether the layer was deconvolved."""
        self._check(layer)
        deconvolution = self._of_kind("deconvolve")
        return deconvolution is not None and deconvolution.has_array(f"projections.zarr/{layer}")

    def switches(self, layer: str, pool: str) -> zarr.Array[Any]:
        """Switches of a pool below a layer, unread: (features, k, channels, h, w) uint8.

        Each is the offset of the maximum inside its pooling window; 255 lies outside the image.
        """
        self._check(layer)
        return self._array("switches", f"switches.zarr/{layer}/{pool}")

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
        return self.pixels(identity, ref)

    def pixels(self, identity: str, ref: ImageRef) -> NDArray[np.uint8]:
        """An image by its reference: what `image` returns, for readers of many images."""
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
        return {image.id: image.ref for image in self.find_images(self._mentioned())}

    def find_images(self, ids: Collection[str]) -> list[StoredImage]:
        """The images of these ids that a scan accepted, in the order of the files.

        One pass over the table `images`; over that of another scan only for ids that are missing.
        """
        first = self._needed("scan")
        others = (each for each in self.analyses.values() if each.kind == "scan")
        missing = set(ids)
        parts: list[pa.Table] = []
        for scan in (first, *(each for each in others if each.is_readable and each is not first)):
            if missing or not parts:
                wanted = pa.array(sorted(missing), pa.string())
                chosen = ds.field("id").isin(wanted) & (ds.field("status") == Status.OK.value)
                columns = ["id", "key", "label", "predicted", "probability", *_REFERENCE]
                parts.append(scan.dataset("images").to_table(columns=columns, filter=chosen))
                missing -= set(parts[-1]["id"].to_pylist())
        rows = pa.concat_tables(parts).sort_by([(name, "ascending") for name in _REFERENCE])
        return [
            StoredImage(ref=ImageRef(**{name: row.pop(name) for name in _REFERENCE}), **row)
            for batch in rows.to_batches()
            for row in batch.to_pylist()
        ]

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
        """The analysis of a kind that stands for the run.

        One that can be read goes before others, and then the one that is called like its kind. Of
        those that work on a scan, only analyses of the scan that stands for the run count: their
        features are those of its winners.
        """
        found = [each for each in self.analyses.values() if each.kind == kind]
        scan = self._of_kind("scan") if kind in ("switches", "deconvolve") else None
        if scan is not None:
            found = [each for each in found if each.needs.get("scan", scan.name) == scan.name]
        return min(found, key=lambda one: (not one.is_readable, one.name != kind), default=None)

    def _needed(self, kind: str) -> AnalysisResults:
        analysis = self._of_kind(kind)
        if analysis is None:
            raise UsageError(
                f"{self.run}: the run has no {kind}; add `{kind}: {{}}` to the analyses of its job "
                "and run it again"
            )
        if not analysis.is_readable:
            raise UsageError(f"{self.run}: {analysis.reason(kind)}")
        return analysis

    def _array(self, kind: str, path: str) -> zarr.Array[Any]:
        analysis = self._of_kind(kind)
        if analysis is None:
            raise UsageError(f"{self.run}: there is no {path}: the run has no {kind} of it")
        return analysis.array(path)


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
