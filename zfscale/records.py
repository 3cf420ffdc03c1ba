"""The frozen records that travel between the layers, and the description of tables and arrays.

Knows no library beyond numpy: a record can be pickled, hashed and printed anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, NDArray[Any]]
"""A table in memory: column name to a one-dimensional array, all of one length."""


class Box(NamedTuple):
    """Rows y0 to y1 and columns x0 to x1 of an image or a map, the ends not included."""

    y0: int
    x0: int
    y1: int
    x1: int


class Status(StrEnum):
    """What became of an image. Every image that goes in ends as exactly one of these."""

    OK = "ok"
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"


class Reason(StrEnum):
    """Why an image was quarantined. docs/formats.md explains each."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_DEPTH = "unsupported_depth"
    ANIMATED = "animated"
    UNSAFE_NAME = "unsafe_name"
    NOT_A_FILE = "not_a_file"
    DUPLICATE_KEY = "duplicate_key"
    NO_IMAGE = "no_image"
    UNREADABLE = "unreadable"
    NON_FINITE = "non_finite"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one encoded image lies: enough to read this one again.

    A file or a tar member has `offset` and `length` in bytes; a Parquet cell has
    `row_group` and `row` within that group, and so has what only its format can read again. The
    other pair is None.
    """

    uri: str
    offset: int | None = None
    length: int | None = None
    row_group: int | None = None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A container, a folder, a glob or a single file of images, as it is listed without opening it.

    `size` is in bytes, 0 where several files make up the shard. `version` is text that changes
    when the shard does (the time of its last change, or an etag); None where the storage does not
    say. `labels` is the URI of a label file for a flat folder. A `class_folder` holds images of
    one class, also in folders below it; `label` is this class once the whole collection is
    numbered.
    """

    format: str
    uri: str
    size: int
    version: str | None = None
    label: int | None = None
    labels: str | None = None
    class_folder: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as its source gives it: encoded bytes, or the reason why there are none."""

    index: int
    key: str
    label: int | None
    ref: ImageRef
    data: bytes | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image of a batch, without its pixels. `id` is 32 hex digits of content hash."""

    index: int
    id: str
    key: str
    label: int | None
    ref: ImageRef
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From encoded bytes to the network's input: resize, centre crop, normalise.

    `resize` is the short side in pixels, or None to resize the whole image to `crop`.
    `crop` is (height, width). The input is `(pixel * scale - mean) / std` per channel,
    with `pixel` in 0..255 and the channels in `order` ("RGB" or "BGR").
    """

    resize: int | None
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    order: Literal["RGB", "BGR"] = "RGB"
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic"] = "bilinear"

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The colour that becomes zero, as RGB values in 0..255."""
        red, green, blue = (round(min(max(mean / self.scale, 0), 255)) for mean in self.mean)
        return (red, green, blue) if self.order == "RGB" else (blue, green, red)


@dataclass(frozen=True, slots=True)
class Layer:
    """A place in the network whose features are observed.

    `name` is the module name a user gives; `node` is the graph node that is observed (for a
    convolution the one after its rectification), or None in a net that cannot be traced.
    `channels` features of `height` x `width` units; `stride` and `field` (side of the
    receptive field) in input pixels, (y, x); None where the geometry is not known.
    """

    name: str
    node: str | None
    channels: int
    height: int
    width: int
    stride: tuple[int, int] | None
    field: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class File:
    """An immutable file of a run: its path relative to the run, its bytes, what it holds.

    `table` is the table that it is a part of, under the name that its analysis gives it; None for
    a part of an array. `rows` counts the rows of that table in this file.
    """

    path: str
    sha256: str
    size: int
    table: str | None = None
    rows: int = 0


@dataclass(frozen=True, slots=True)
class ImageRange:
    """Samples `start` to `stop` of one shard, less the positions in `skip`.

    `index` is the segment that lists the samples of the shard. `skip` holds images that an
    earlier task already has: duplicates by content.
    """

    shard: Shard
    index: File
    start: int
    stop: int
    skip: tuple[int, ...] = ()

    def without(self, positions: tuple[int, ...]) -> ImageRange:
        """The same range less some positions of the shard."""
        return replace(self, skip=tuple(sorted({*self.skip, *positions})))


@dataclass(frozen=True, slots=True)
class ImageList:
    """Single images by reference, e.g. the winners of a run."""

    images: tuple[Image, ...]


@dataclass(frozen=True)
class Task:
    """The unit of work, of retry and of commit.

    `analysis` is the name of the analysis it belongs to. `images` are what it reads: a shard to
    be indexed, or images to be decoded. `payload` is plain JSON that this analysis understands.
    """

    analysis: str
    images: Shard | ImageRange | ImageList | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """20 hex digits that depend on nothing but the work: the same task in any plan and run."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def image_count(self) -> int:
        """Images that it reads and accounts for: none for a shard that it lists."""
        match self.images:
            case ImageRange(start=start, stop=stop):
                return stop - start
            case ImageList(images=images):
                return len(images)
            case _:
                return 0

    def __str__(self) -> str:
        return f"{self.analysis} task {self.id}"


@dataclass(frozen=True, slots=True)
class Counts:
    """Images of a task or a run. `images == ok + quarantined + duplicate` always holds."""

    images: int = 0
    ok: int = 0
    quarantined: int = 0
    duplicate: int = 0
    non_finite: int = 0
    """Those of `quarantined` whose activations were NaN or Inf."""

    def __post_init__(self) -> None:
        if self.images != self.ok + self.quarantined + self.duplicate:
            raise ValueError(f"images do not add up: {self}")

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.images + other.images,
            self.ok + other.ok,
            self.quarantined + other.quarantined,
            self.duplicate + other.duplicate,
            self.non_finite + other.non_finite,
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a finished task reports: the files it published and how its images ended.

    `task` is the id of the task, `seconds` the time that it took, and `device` the model of GPU
    or the instruction set of the CPU that computed it. `warnings` are sentences for whoever runs
    the job.
    """

    task: str
    files: tuple[File, ...]
    counts: Counts
    seconds: float
    device: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that used up its attempts or its time, with the last error in words."""

    task: str
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `type` is one of int32, int64, float32, float64, string, bool,
    or list<...> of these. A nullable number is given as a masked array, a nullable string as None.
    """

    name: str
    type: str
    meaning: str
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A Parquet dataset of the run. Rows are unique by `key` and sorted by it.

    `by_layer` partitions it as `layer=NAME/` (the column `layer` then lives in the path alone).
    `identity` names the columns that the digest of a run covers: what is known of the result,
    not where or when it was computed.
    """

    name: str
    version: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    identity: tuple[str, ...]
    by_layer: bool = False


@dataclass(frozen=True, slots=True)
class Array:
    """A Zarr array of the run at `path`, e.g. `switches.zarr/conv5/pool1`.

    The first two axes are (feature, rank); one chunk is one record `shape[2:]`; one shard
    is `shard` features, written whole by one writer. `fill` stands where there is no record.
    `axes` names the axes of a record and `meaning` says what it holds; both are stored with it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    shard: int
    fill: float
    axes: tuple[str, ...] = ()
    meaning: str = ""


@dataclass(frozen=True)
class Block:
    """Features `start` and on of an array: `data` has shape (n <= shard, k, ...)."""

    array: Array
    start: int
    data: NDArray[Any]


_NUMBERS: dict[str, type] = {
    "int32": np.int32,
    "int64": np.int64,
    "float32": np.float32,
    "float64": np.float64,
    "bool": np.bool_,
}


def to_columns(description: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Columns:
    """Rows that were collected one by one, each with one value a column, as columns.

    None becomes a masked number. Raises ValueError for a row of another length.
    """
    rows = list(rows)
    for row in rows:
        if len(row) != len(description):
            names = ", ".join(column.name for column in description)
            raise ValueError(f"a row has {len(row)} values, expected {len(description)}: {names}")
    values = list(zip(*rows, strict=True)) or [()] * len(description)
    return {
        column.name: _column(column, cells)
        for column, cells in zip(description, values, strict=True)
    }


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, which have the same columns; there must be one at least."""
    return {name: np.ma.concatenate([part[name] for part in parts]) for name in parts[0]}


def _column(column: Column, values: Sequence[Any]) -> NDArray[Any]:
    kind = _NUMBERS.get(column.type)
    if kind is None:
        array = np.empty(len(values), object)
        for at, value in enumerate(values):  # numpy would take lists of one length for a matrix
            array[at] = value
        return array
    if column.nullable:
        missing = [value is None for value in values]
        filled = [0 if value is None else value for value in values]
        return np.ma.masked_array(np.array(filled, kind), missing)
    return np.array(values, kind)


def published_name(default: str, kind: str, name: str) -> str:
    """How a table or array store of an analysis is called in the run.

    Under the name of its kind an analysis publishes under the `default` names. Under another name
    the kind at the beginning gives way to that name, or the name is put in front: of
    `occlusion_images` becomes `small-occluder_images`, of `winners` `deep_winners`.
    """
    if name == kind:
        return default
    rest = default.removeprefix(kind)
    if rest != default and rest[:1] in ("", "_", "."):
        return name + rest
    return f"{name}_{default}"


def array_path(default: str, kind: str, name: str) -> str:
    """Where an array of an analysis lies in the run: `default` with the store named after it."""
    store, _, path = default.partition("/")
    return f"{published_name(store, kind, name)}/{path}"


def image_id(data: bytes) -> str:
    """128 bits of content hash as 32 hex digits: the identity of an image wherever it lies."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
