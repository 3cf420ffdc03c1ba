"""Analyses: one file = one analysis = one name in a job file.

An analysis module has a docstring that cites its source, and

    class Options(BaseModel, frozen=True, extra="forbid")   its keys in the job file
    def passes(options: Options) -> tuple[Pass, ...]        what to do, in order

Everything in it is torch and numpy: the driver plans and publishes, a worker feeds and stores.
Adding an analysis is adding a file here; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from zfscale.errors import UsageError
from zfscale.job import explain
from zfscale.records import Array, Block, Columns, Image, ImageRange, Reason, Shard, Table, Task

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

    from zfscale.boxes import PartBox
    from zfscale.convnet.network import Network


FILE = "uri-reference"
"""The `format` that an option has in the schema if it names a file: a path or a URL."""


@dataclass(frozen=True)
class Batch:
    """Decoded images of one task, never of two.

    `pixels` is uint8 (B, 3, H, W), channels last, on the worker's device; rows from `len(images)`
    on are padding.
    """

    pixels: torch.Tensor
    images: tuple[Image, ...]


class Context(Protocol):
    """What a worker lends to a pass while it runs one task."""

    @property
    def network(self) -> Network: ...

    def batches(self) -> Iterator[Batch]:
        """The images of the task, decoded ahead, in batches of exactly B."""

    def quarantine(self, image: Image, reason: Reason) -> None:
        """Take back an image that decoded well but cannot be used."""

    def read(self, array: str, start: int, stop: int) -> Any:
        """Features `start` to `stop` of a stored array of the run, shape (n, k, ...)."""


class Rows(Protocol):
    """Reads a table of one committed task, or those of its rows that match.

    `where` maps a column to the value it must have, or to (start, stop) of a range of integers.
    """

    def __call__(self, table: str, **where: str | tuple[int, int]) -> Columns: ...


class View(Protocol):
    """What the driver knows while it plans: the collection, the network, what is published."""

    @property
    def shards(self) -> Sequence[Shard]: ...

    @property
    def network(self) -> Network: ...

    @property
    def ranges(self) -> Sequence[ImageRange]:
        """The collection cut into tasks' worth of images, in canonical order."""

    @property
    def batch(self) -> int:
        """Images in a batch."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers that are, or will be, scanned."""

    def done(self, stage: str) -> Mapping[str, Rows]:
        """Committed tasks of a pass: task id to a reader of its tables."""

    def tell(self, note: str) -> None:
        """Let whoever runs the job know something, in one sentence."""

    def table(self, table: Table) -> Columns:
        """A published table, whole. Not for `images`, which grows with the input."""

    def images(self, ids: Sequence[str]) -> Sequence[Image]:
        """Accepted images by id, with their references, in the order of the collection."""

    def keyed(self, keys: Sequence[str]) -> Sequence[Image]:
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


@dataclass(frozen=True)
class Output:
    """What one task gives: rows of tables, and blocks of arrays."""

    tables: Mapping[str, Columns] = field(default_factory=dict)
    blocks: Sequence[Block] = ()


Published = tuple[Table, Columns] | Block
"""Rows of a final table, or a block of a final array."""


@dataclass(frozen=True)
class Pass:
    """One sweep over tasks: plan, run, publish.

    `plan` names all tasks wanted in view of what is committed; it is asked again after they
    are done, until it names no new one. `run` does one task on a worker. `publish` turns the
    committed tables of the plan's tasks, read in the plan's order, into final tables and blocks.
    `tables` describes what `publish` gives; a task's own tables need no description.
    """

    name: str
    plan: Callable[[View], Sequence[Task]]
    run: Callable[[Context, Task], Output]
    publish: Callable[[View, Sequence[Task]], Iterable[Published]]
    tables: tuple[Table, ...] = ()
    check: Callable[[View], None] = lambda view: None
    """Raises the error of a pass that this network cannot have, before anything is done."""
    needs: tuple[str, ...] = ()
    """Passes whose results must be published before this one can be planned."""
    over_collection: bool = False
    """Whether its tasks are ranges of the collection, so that its result depends on all images."""
    arrays: Callable[[View], Sequence[Array]] = lambda view: ()


class AnalysisModule(Protocol):
    """The shape of a module in this package."""

    @property
    def Options(self) -> type[BaseModel]: ...  # noqa: N802

    def passes(self, options: Any) -> tuple[Pass, ...]: ...


def names() -> list[str]:
    """All analyses there are: the modules of this package, less their private helpers."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name not in ("shared", "switches"))


def load(name: str) -> AnalysisModule:
    """The module of an analysis. Raises UsageError for an unknown name."""
    if name not in names():
        raise UsageError(
            f"analyses.{name}: there is no such analysis; there are {', '.join(names())}"
        )
    module: Any = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{module.__name__}.analysis")
    return module  # type: ignore[no-any-return]


def options(name: str, given: Mapping[str, Any]) -> BaseModel:
    """The options of an analysis from the keys of a job file.

    Raises UsageError naming the key, the value and what was expected.
    """
    from pydantic import ValidationError

    model = load(name).Options
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UsageError(explain(error, model, f"analyses.{name}.")) from error


def files(name: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Those keys of an analysis in a job file that name a file, with what they name."""
    properties = load(name).Options.model_json_schema().get("properties", {})
    known = {key for key, described in properties.items() if described.get("format") == FILE}
    return {key: given[key] for key in sorted(known & given.keys()) if isinstance(given[key], str)}
