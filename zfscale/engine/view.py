"""A run as its driver sees it: what the job asks for, what is committed, what is published.

Joins the stores to the collection and the network, and gives passes their `View`. Computes
nothing, and knows no executor.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from zfscale import analyses
from zfscale import collection as sources
from zfscale.analyses import Pass, Published, Rows
from zfscale.boxes import PartBox
from zfscale.collection import classes, parts
from zfscale.engine.fingerprint import fingerprint
from zfscale.engine.worker import Setup, load_network
from zfscale.errors import UsageError
from zfscale.records import (
    Block,
    Columns,
    Counts,
    File,
    Image,
    ImageRange,
    Receipt,
    Shard,
    Table,
    Task,
)
from zfscale.runs import arrays, segments, tables
from zfscale.runs import image_index as catalogue
from zfscale.runs import manifest as manifests
from zfscale.runs import record as run
from zfscale.runs.ledger import Ledger
from zfscale.storage import open_storage

TASK_IMAGES = (128, 1024)
"""Images in a task, at least and at most: seconds to a minute of work."""
TASKS = 16
"""A small collection is cut into about so many tasks, so that all workers share it."""
COMPLETE = "complete"


def cut(shards: Sequence[Shard], batch: int) -> list[ImageRange]:
    """The collection as tasks' worth of images: whole batches, never over two shards."""
    least, most = TASK_IMAGES
    wanted = min(max(sum(shard.images for shard in shards) // TASKS, least), most)
    size = max(1, wanted // batch) * batch
    return [
        ImageRange(shard, start, min(start + size, shard.images))
        for shard in shards
        for start in range(0, shard.images, size)
    ]


class RunView:
    """A run that is open for writing. The `View` of all passes."""

    def __init__(self, setup: Setup) -> None:
        """Open the run of a job. Raises FingerprintMismatch if it was begun differently."""
        self.job = setup.job
        self.batch = setup.job.batch
        self.network = load_network(setup.job, "cpu")
        self.storage = open_storage(setup.job.run)
        self._known, _ = manifests.latest(self.storage)
        if self._known is None:
            run.check_unclaimed(self.storage, ("images", "features", "winners", "segments"))
        self.ledger = Ledger.open(
            self.storage, fingerprint(setup, self.network), self._stages(), self._facts()
        )
        # A damaged file is as good as work that was never done.
        damage = self.ledger.verify()
        again = "done again, if this job has the analysis that made it"
        self.notes = [*self.ledger.notes, *(f"{each}: {again}" for each in damage)]
        """What is to be told; the driver takes it from here."""
        self._lost = {each.task for each in damage}
        self._damaged = {each.file.path for each in damage if each.task is None}
        self._recorded: parts.Boxes = {}  # a plan is asked for several times, a tar walked once

    @cached_property
    def shards(self) -> Sequence[Shard]:
        """The collection, in canonical order."""
        found = sources.find(self.job.images, self.job.format)
        if not any(shard.images for shard in found):
            places = ", ".join(shard.uri for shard in found[:3])
            raise UsageError(f"images: {len(found)} shards and no image in them, e.g. {places}")
        return found

    @cached_property
    def ranges(self) -> Sequence[ImageRange]:
        """The collection cut into tasks' worth of images."""
        return cut(self.shards, self.batch)

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers that are, or will be, scanned."""
        return [layer["name"] for layer in self.ledger.manifest.facts.get("layers", [])]

    @property
    def committed(self) -> set[str]:
        """Ids of the tasks that need not be done."""
        return set(self.ledger.committed) - self._lost

    def done(self, stage: str) -> Mapping[str, Rows]:
        """Committed tasks of a pass: task id to a reader of its tables."""
        prefix = f"{stage}-"
        return {task: self._reader(task) for task in self.committed if task.startswith(prefix)}

    def table(self, table: Table) -> Columns:
        """A published table, whole; without rows where nothing was published."""
        try:
            return tables.read(self.storage, table.name)
        except FileNotFoundError:
            return tables.empty(table)

    def images(self, ids: Sequence[str]) -> Sequence[Image]:
        """Accepted images by id, with their references, in the order of the collection."""
        return catalogue.by_id(self.storage, ids)

    def keyed(self, keys: Sequence[str]) -> Sequence[Image]:
        """Accepted images by key, in the order of the collection."""
        return catalogue.by_key(self.storage, keys)

    def sample(self, count: int, seed: int) -> Sequence[Image]:
        """`count` accepted images, or all there are, in the order of the collection."""
        return catalogue.sample(self.storage, count, seed)

    def parts(self, images: Sequence[Image], file: str | None) -> Mapping[str, Sequence[PartBox]]:
        """Boxes of parts by image id: from a user's file, or else from the images' records."""
        if file is not None:
            rows = parts.table(file)
            strange = set(catalogue.unknown(self.storage, [row.key for row in rows]))
            for row in rows:
                if row.key in strange:
                    raise UsageError(
                        f"parts: {row.place}: key: {row.key!r}, expected the key of an image of "
                        f"{self.storage.url}: see its table `images`"
                    )
            return parts.assign(rows, images)
        new = [image for image in images if image.id not in self._recorded]
        found, notes = parts.of_records(new, self.job.format)
        self._recorded |= {image.id: found.get(image.id, ()) for image in new}
        self.notes += notes
        known = ((image.id, self._recorded[image.id]) for image in images)
        return {id_: boxes for id_, boxes in known if boxes}

    def tell(self, note: str) -> None:
        """Keep a note for whoever runs the job."""
        self.notes.append(note)

    def commit(self, receipts: Sequence[Receipt]) -> None:
        """Make finished tasks durable."""
        self.ledger.commit(receipts)
        self._lost -= {receipt.task for receipt in receipts}

    def counts(self, tasks: Sequence[Task]) -> Counts:
        """How the images of some tasks ended."""
        committed = self.ledger.committed
        return sum((committed[task.id].counts for task in tasks), Counts())

    def has_published(self, stage: str) -> bool:
        """Whether the results of a pass are there."""
        return self.ledger.manifest.facts.get(f"published_{stage}") is not None

    def publish(self, step: Pass, tasks: Sequence[Task]) -> bool:
        """Derive the final tables and arrays of a pass; False if they are there already."""
        results = [file.sha256 for task in tasks for file in self.ledger.committed[task.id].files]
        name = f"published_{step.name}"
        facts: dict[str, Any] = {name: hashlib.sha256("".join(results).encode()).hexdigest()}
        if step.over_collection:
            facts["counts"] = asdict(self.counts(tasks))
        own = {table.name for table in step.tables}
        specs = step.arrays(self)
        names = own | {array.path.partition("/")[0] for array in specs}
        known = self.ledger.manifest.facts
        damaged = {path for path in self._damaged if path.partition("/")[0] in names}
        if all(known.get(key) == value for key, value in facts.items()) and not damaged:
            return False
        self.ledger.commit(withdrawn=sorted(own), facts={name: None})
        for path in damaged:
            self.storage.delete(path)
        created = (file for array in specs for file in arrays.create(self.storage, array))
        written = {file.path: file for file in created}
        for file in self._write(step, tasks):
            if file.path in written:
                raise ValueError(f"pass {step.name} publishes {file.path} twice: it was replaced")
            written[file.path] = file
        for table in sorted(own):
            tables.remove_stale(self.storage, table, written.values())
        self.ledger.commit(published=written.values(), facts=facts)
        self._damaged -= damaged
        return True

    def classification_error(self) -> tuple[float | None, float | None]:
        """Top-1 and top-5 error over the labelled images, 0..1; None where there are no labels."""
        try:
            found = tables.open_dataset(self.storage, "images")
        except FileNotFoundError:
            return None, None
        labelled = wrong1 = wrong5 = 0
        for batch in found.to_batches(columns=["true_class_rank"]):
            rank = batch.column("true_class_rank").drop_null().to_numpy()
            labelled += len(rank)
            wrong1 += int((rank >= 1).sum())
            wrong5 += int((rank >= 5).sum())
        return (wrong1 / labelled, wrong5 / labelled) if labelled else (None, None)

    def complete(self) -> Counts:
        """Commit that everything the job asked for is there; the counts of the run."""
        self.ledger.commit(status=COMPLETE)
        return Counts(**self.ledger.manifest.facts.get("counts", {}))

    def refuse(self) -> None:
        """Commit that the run is as complete as it was before a job that cannot be done."""
        if self._known is not None and self._known.status == COMPLETE:
            self.ledger.commit(status=COMPLETE)

    def _write(self, step: Pass, tasks: Sequence[Task]) -> Iterator[File]:
        """Publish what a pass gives, a run of items of one table at a time."""
        run_id = self.ledger.manifest.run_id
        for table, group in itertools.groupby(step.publish(self, tasks), _table_of):
            chunks = (item[1] for item in group if not isinstance(item, Block))
            if table is None:
                for item in group:
                    if isinstance(item, Block):
                        yield from arrays.write(self.storage, item)
            elif table.by_layer:
                for columns in chunks:
                    yield from tables.write(self.storage, table, columns, run_id)
            else:
                yield tables.write_stream(self.storage, table, chunks, run_id)

    def _reader(self, task: str) -> Rows:
        files_ = {segments.table_of(file): file for file in self.ledger.committed[task].files}

        def read(table: str, **where: str | tuple[int, int]) -> Columns:
            return segments.read(self.storage, files_[table], where=where)

        return read

    def _stages(self) -> dict[str, Any]:
        """Options of every pass of the job; those over the collection depend on its list too."""
        stages: dict[str, Any] = {}
        for name, given in self.job.analyses.items():
            options = analyses.options(name, given)
            for step in analyses.load(name).passes(options):
                stages[step.name] = options.model_dump(mode="json")
                if step.over_collection:
                    listed = json.dumps([asdict(shard) for shard in self.shards]).encode()
                    digest = hashlib.sha256(listed).hexdigest()
                    stages[step.name]["list of images"] = f"{len(self.shards)} shards, {digest}"
        return stages

    def _facts(self) -> dict[str, Any]:
        """What run.json says of the job, for readers of the results."""
        spec = self.job.model_dump(mode="json")
        facts: dict[str, Any] = {"preprocessing": asdict(self.network.preprocessing)}
        facts["untraceable"] = self.network.untraceable
        if self._known is not None:
            spec["analyses"] = self._known.facts["spec"]["analyses"] | spec["analyses"]
        if "scan" in self.job.analyses:
            layers = self.network.choose(self.job.analyses["scan"].get("layers"))
            facts["layers"] = [asdict(layer) for layer in layers]
            facts["classes"] = self._class_names()
        return facts | {"spec": spec}

    def _class_names(self) -> list[str] | None:
        if self.job.classes is not None:
            return classes.names(self.job.classes)
        return sources.class_names(self.shards)


def _table_of(item: Published) -> Table | None:
    return None if isinstance(item, Block) else item[0]
