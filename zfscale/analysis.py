"""What an analysis is: the one class to write, and what the engine lends to it.

An analysis is a class. Its attributes say what it is called and what it needs, its methods plan
the work, do one task of it on a worker, and turn what the tasks left behind into final tables.
The engine does everything else: it hands tasks to workers, feeds them with decoded images, commits
what they give, tries again, resumes, and writes the tables. Nothing here knows a file, Ray or
Arrow, so an analysis can be tested with tensors alone.

Built-in analyses are the modules of `zfscale.analyses`. A package of yours adds one with an entry
point of the group `zfscale.analyses`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from zfscale.records import (
    Array,
    Block,
    Columns,
    Image,
    ImageList,
    ImageRange,
    Reason,
    Shard,
    Table,
    Task,
)

if TYPE_CHECKING:
    import torch

    from zfscale.boxes import PartBox
    from zfscale.convnet.network import Network

__all__ = [
    "FILE",
    "Analysis",
    "Batch",
    "Context",
    "NoOptions",
    "Output",
    "Published",
    "Rows",
    "View",
]

FILE = "uri-reference"
"""The `format` that an option has in the schema if it names a file: a path or a URL. A run
remembers such a file by its content."""


@dataclass(frozen=True)
class Batch:
    """Decoded images of one task, never of two.

    `pixels` is uint8 (B, 3, H, W), channels last, on the worker's device; rows from `len(images)`
    on are padding.
    """

    pixels: torch.Tensor
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Output:
    """What one task gives: rows of tables, and blocks of arrays."""

    tables: Mapping[str, Columns] = field(default_factory=dict)
    blocks: Sequence[Block] = ()


Published = tuple[Table, Columns] | Block
"""Rows of a final table, or a block of a final array."""


class Rows(Protocol):
    """Reads a table of one committed task: all columns or the named ones, of all rows or of those
    that match.

    `where` maps a column to the value it must have, or to (start, stop) of a range of integers.
    """

    def __call__(self, table: str, *columns: str, **where: str | tuple[int, int]) -> Columns: ...


class Context(Protocol):
    """What a worker lends to an analysis while it runs one task."""

    @property
    def network(self) -> Network: ...

    def batches(self) -> Iterator[Batch]:
        """The images of the task, decoded ahead, in batches of exactly B."""

    def quarantine(self, image: Image, reason: Reason) -> None:
        """Take back an image that decoded well but cannot be used."""

    def read(self, kind: str, array: str, start: int, stop: int) -> Any:
        """Features `start` to `stop` of an array of the analysis needed as `kind`: (n, k, ...).

        `array` is its path as that analysis describes it, e.g. `switches.zarr/conv5/pool1`.
        """

    def warn(self, text: str) -> None:
        """Let whoever runs the job know something, in one sentence."""

    def index(self) -> Columns:
        """List the samples of the shard that the task reads, one row each, without decoding."""


class View(Protocol):
    """What an analysis sees of the run while it plans and publishes."""

    @property
    def network(self) -> Network: ...

    @property
    def batch(self) -> int:
        """Images in a batch."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The files and folders of the collection, in canonical order, unopened."""

    @property
    def ranges(self) -> Sequence[ImageRange]:
        """The indexed collection, split into tasks' worth of images, in canonical order."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers of the scan that is needed."""

    @property
    def done(self) -> Mapping[str, Rows]:
        """The committed tasks of this analysis: task id to a reader of its tables."""

    def class_names(self) -> list[str] | None:
        """Names by label: of the job's file of classes, else as the collection says them."""

    def warn(self, text: str) -> None:
        """Let whoever runs the job know something, in one sentence."""

    def table(self, kind: str, table: Table) -> Columns:
        """A table of the analysis needed as `kind`, whole; without rows if nothing is published.

        Not for `images`, which grows with the input.
        """

    def references(self, images: ImageRange) -> Columns:
        """The rows of the index for a range: position, key, label, uri, offset and so on."""

    def accepted(self) -> Iterator[Image]:
        """All images that the scan has accepted, in the order of the collection, as a stream."""

    def images(self, ids: Sequence[str]) -> Sequence[Image]:
        """Accepted images by id, with their references, in the order of the collection."""

    def by_key(self, keys: Sequence[str]) -> Sequence[Image]:
        """Accepted images by key, in the order of the collection.

        Raises UsageError naming keys that no accepted image has.
        """

    def sample(self, count: int, seed: int) -> Sequence[Image]:
        """`count` accepted images, or all there are, in the order of the collection."""

    def parts(self, images: Sequence[Image], file: str | None) -> Mapping[str, Sequence[PartBox]]:
        """Boxes of parts by image id, for those images that have any, each part once.

        From a user's `file`, or else from what the images' own records say. Reads no pixels.
        Raises UsageError for a file with a mistake in it.
        """


class NoOptions(BaseModel, frozen=True, extra="forbid"):
    """No options."""


OptionsT = TypeVar("OptionsT", bound=BaseModel)


class Analysis(Generic[OptionsT]):
    """One kind of analysis; an instance is one under a name in a run, with its options.

    `needs` are kinds of analyses whose results this one works on. `scans_dataset` says that its
    tasks are ranges of the whole collection. `brings` are kinds that follow it in every job that
    does not name them, because most readers of its results want theirs as well. What is `fixed`
    must not change once another analysis has worked on it. What `uses_network` depends on weights,
    preprocessing, batch, threads and device: these must then stay what they were.
    """

    kind: ClassVar[str]
    Options: ClassVar[type[BaseModel]] = NoOptions
    needs: ClassVar[tuple[str, ...]] = ()
    brings: ClassVar[tuple[str, ...]] = ()
    scans_dataset: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    uses_network: ClassVar[bool] = True

    def __init__(self, options: OptionsT, name: str | None = None) -> None:
        self.options = options
        self.name = name or self.kind

    @property
    def tables(self) -> tuple[Table, ...]:
        """The final tables, each column with its meaning."""
        return ()

    def arrays(self, view: View) -> Sequence[Array]:
        """The final arrays, known once the analyses that this one needs are complete."""
        return ()

    def metadata(self, view: View) -> Mapping[str, Any]:
        """What readers of the run should know besides the options, as JSON.

        Asked before any work is done, when it can only follow from the network and the options,
        and again when the tasks are done. Raises UsageError for options that this network cannot
        have.
        """
        return {}

    def check(self, view: View) -> None:
        """Raise the error of an analysis that cannot be done, before any work is done."""

    def memory(self, network: Network) -> int:
        """Bytes that a task holds at once, beside the network and one batch of its maps."""
        return 0

    def plan(self, view: View) -> Iterable[Task]:
        """All tasks that are wanted, in view of what is committed.

        It is asked again when they are done, until it names no new one. Made with `self.task`.
        """
        raise TypeError(f"the analysis {self.kind} plans no tasks: it must define `plan`")

    def run(self, context: Context, task: Task) -> Output:
        """Do one task on a worker: the same bytes anywhere, any number of times."""
        raise TypeError(f"the analysis {self.kind} does no tasks: it must define `run`")

    def publish(
        self,
        view: View,
        tasks: Iterable[Task],
    ) -> Iterable[Published]:
        """The final rows and blocks, in any order, from the committed tables of `tasks`.

        These are the plan's, in its order; they can be gone through as often as needed.
        """
        return ()

    def task(
        self,
        images: Shard | ImageRange | ImageList | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> Task:
        """A task of this analysis."""
        return Task(self.name, images, payload or {})
