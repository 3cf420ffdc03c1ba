"""A run as the analyses of a job see it: the collection, the network, what is committed.

Reads the stores and the collection for them; plans nothing, commits nothing, computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from zfscale import collection
from zfscale.analysis import Rows
from zfscale.boxes import PartBox
from zfscale.collection import classes, parts
from zfscale.convnet.network import Network
from zfscale.engine.events import Level, Note, Report
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.stages import Stage
from zfscale.errors import UsageError
from zfscale.records import Columns, File, Image, ImageRange, Shard, Table, Task
from zfscale.runs import segments, tables
from zfscale.runs.image_index import ImageIndex, references
from zfscale.runs.manifest import AnalysisState, Manifest
from zfscale.storage.base import Storage

TASK_IMAGES = (128, 1024)
"""Images in a task, at least and at most: seconds to a minute of work."""
TASKS = 16
"""A small collection is split into about so many tasks, so that all workers share it."""


def split_into_ranges(shards: Sequence[tuple[Shard, File]], batch: int) -> Iterator[ImageRange]:
    """The indexed collection as tasks' worth of images: whole batches, never over two shards."""
    least, most = TASK_IMAGES
    images = sum(index.rows for _, index in shards)
    wanted = min(max(images // TASKS, least), most)
    size = max(1, wanted // batch) * batch
    for shard, index in shards:
        for start in range(0, index.rows, size):
            yield ImageRange(shard, index, start, min(start + size, index.rows))


class Collection:
    """The images of a job: found once, however many analyses ask for them."""

    def __init__(self, job: ResolvedJob) -> None:
        self._job = job
        self.boxes: parts.Boxes = {}
        """Boxes of parts by image id, as far as they were asked for: a tar is walked once."""

    @cached_property
    def shards(self) -> Sequence[Shard]:
        """Its files and folders in canonical order, unopened."""
        return collection.find(self._job.images, self._job.format)

    def class_names(self, shards: Sequence[Shard]) -> list[str] | None:
        """Names by label: of the job's file of classes, else as the collection says them."""
        if self._job.classes is not None:
            return classes.names(self._job.classes)
        return collection.class_names(shards)


class AnalysisView:
    """The `View` of one analysis.

    `manifest` is that of the last time when tasks were planned or results published. `warnings`
    are sentences for whoever runs the job. `lost` are tasks whose files are damaged.
    """

    def __init__(
        self,
        job: ResolvedJob,
        stage: Stage,
        network: Network,
        storage: Storage,
        images: Collection,
    ) -> None:
        self.job, self.stage, self.network, self.storage = job, stage, network, storage
        self.batch = job.batch
        self.manifest: Manifest | None = None
        self.lost: set[str] = set()
        self.warnings: list[str] = []
        self._collection = images
        self.metadata: Mapping[str, Any] = {}
        """What this analysis tells its readers, as far as it is known before the work."""
        self._metadata: dict[str, Mapping[str, Any]] = {}

    @property
    def state(self) -> AnalysisState:
        """What the run holds of this analysis."""
        return self._of(self.stage.name)

    @property
    def shards(self) -> Sequence[Shard]:
        return self._collection.shards

    @property
    def indexed(self) -> list[tuple[Shard, File]]:
        """The shards that hold images, numbered where their folders are classes, with the segments
        that list them.
        """
        name = self.stage.name if self.stage.kind == "index" else self.stage.needs["index"]
        state = self._of(name)
        files = [state.receipt(Task(name, shard).id).files[0] for shard in self.shards]
        numbered = collection.number_class_folders(self.shards, [file.rows for file in files])
        return list(zip(numbered, files, strict=True))

    @property
    def ranges(self) -> Sequence[ImageRange]:
        ranges = list(split_into_ranges(self.indexed, self.batch))
        if not ranges:
            places = ", ".join(shard.uri for shard in self.shards[:3])
            raise UsageError(
                f"images: {len(self.shards)} files or folders and no image in them, e.g. {places}"
            )
        return ranges

    @property
    def layers(self) -> Sequence[str]:
        return [layer["name"] for layer in self._metadata_of("scan").get("layers", ())]

    @property
    def done(self) -> Mapping[str, Rows]:
        known = self.manifest is not None and self.stage.name in self.manifest.analyses
        return _Done(self.storage, self.state, self.lost) if known else {}

    def class_names(self) -> list[str] | None:
        return self._collection.class_names([shard for shard, file in self.indexed if file.rows])

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def report_warnings(self, report: Report) -> None:
        """Report what the analysis warns of, each sentence once."""
        while self.warnings:
            report(Note(self.warnings.pop(0), Level.WARNING))

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Say what an analysis of the same job tells its readers, before it stands in the run."""
        self._metadata[name] = metadata

    def table(self, kind: str, table: Table) -> Columns:
        paths = self._paths(kind, table.name)
        return tables.read(self.storage, paths) if paths else tables.empty(table)

    def references(self, images: ImageRange) -> Columns:
        return references(self.storage, images)

    def accepted(self) -> Iterator[Image]:
        return self._images.accepted()

    def images(self, ids: Sequence[str]) -> Sequence[Image]:
        return self._images.by_id(ids)

    def by_key(self, keys: Sequence[str]) -> Sequence[Image]:
        return self._images.by_key(keys)

    def sample(self, count: int, seed: int) -> Sequence[Image]:
        return self._images.sample(count, seed)

    def parts(self, images: Sequence[Image], file: str | None) -> Mapping[str, Sequence[PartBox]]:
        if file is not None:
            rows = parts.table(file)
            unknown = set(self._images.unknown_keys([row.key for row in rows]))
            for row in rows:
                if row.key in unknown:
                    raise UsageError(
                        f"parts: {row.place}: key: {row.key!r}, expected the key of an image of "
                        f"{self.storage.url}: see its table `images`"
                    )
            return parts.assign(rows, images)
        boxes = self._collection.boxes
        new = [image for image in images if image.id not in boxes]
        recorded, warnings = parts.of_records(new, self.job.format)
        boxes |= {image.id: recorded.get(image.id, ()) for image in new}
        self.warnings += warnings
        return {image.id: boxes[image.id] for image in images if boxes[image.id]}

    @property
    def _images(self) -> ImageIndex:
        return ImageIndex(self.storage, tuple(self._paths("scan", "images")))

    def _paths(self, kind: str, table: str) -> list[str]:
        """Files of a table of the analysis that is needed as `kind`."""
        published = self._of(self.stage.needs[kind]).published.values()
        return [file.path for file in published if file.table == table]

    def _metadata_of(self, kind: str) -> Mapping[str, Any]:
        name = self.stage.needs.get(kind, "")
        return self._metadata[name] if name in self._metadata else self._of(name).metadata

    def _of(self, name: str) -> AnalysisState:
        if self.manifest is None or name not in self.manifest.analyses:
            raise UsageError(f"{self.storage.url}: the run has no analysis {name} yet")
        return self.manifest.analyses[name]


class _Done(Mapping[str, Rows]):
    """Readers of the committed tasks of an analysis, made when asked for."""

    def __init__(self, storage: Storage, state: AnalysisState, lost: set[str]) -> None:
        self._storage, self._state, self._lost = storage, state, lost

    def __getitem__(self, task: str) -> Rows:
        files = {file.table: file for file in self._state.receipt(task).files}

        def read(table: str, *columns: str, **where: str | tuple[int, int]) -> Columns:
            return segments.read(self._storage, files[table], columns or None, where)

        return read

    def __contains__(self, task: object) -> bool:
        return task in self._state.tasks and task not in self._lost

    def __iter__(self) -> Iterator[str]:
        return (task for task in self._state.tasks if task not in self._lost)

    def __len__(self) -> int:
        return sum(1 for _ in self)
