"""Whether the files of a run are still what they were, and whether its images add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from zfscale.errors import IntegrityError
from zfscale.records import Counts, File, Status
from zfscale.runs import record as run
from zfscale.runs.manifest import RUNNING, Manifest
from zfscale.runs.tables import open_dataset
from zfscale.storage import base as stores
from zfscale.storage.base import Storage

THREADS = 8
"""Files hashed at a time: an object store answers slowly, a disk does not mind."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is missing (`found` is None) or not what it was.

    `task` is the task that wrote it and can write it again, None for a published file.
    """

    file: File
    found: File | None
    task: str | None

    def __str__(self) -> str:
        what, where = self.file, f"task {self.task}" if self.task else "published"
        if self.found is None:
            return f"{what.path} ({where}) is missing"
        return (
            f"{what.path} ({where}): expected SHA-256 {what.sha256} ({what.size} bytes), "
            f"found {self.found.sha256} ({self.found.size} bytes)"
        )


def find_damage(storage: Storage, manifest: Manifest) -> list[Damage]:
    """Every file of a run that is missing, or whose size or SHA-256 is wrong."""

    def check(item: tuple[str | None, File]) -> Damage | None:
        task, file = item
        try:
            found = File(file.path, *stores.checksum(storage, file.path))
        except FileNotFoundError:
            return Damage(file, None, task)
        return None if found == file else Damage(file, found, task)

    with ThreadPoolExecutor(THREADS) as pool:
        return [damage for damage in pool.map(check, _files(manifest)) if damage is not None]


def _files(manifest: Manifest) -> Iterator[tuple[str | None, File]]:
    for task in manifest.tasks:
        for file in manifest.receipt(task).files:
            yield task, file
    for file in manifest.published.values():
        yield None, file
    if manifest.status != RUNNING:  # a job that was killed may have left it one commit behind
        yield None, stores.file(run.PATH, run.encode(run.RunRecord.of(manifest)))


def check_accounting(storage: Storage, manifest: Manifest) -> Counts:
    """Count the rows of `images` by status and compare them with the counts of the run.

    Raises IntegrityError where they differ: an image would have vanished, or come from nowhere.
    """
    if "counts" not in manifest.facts:
        return Counts()  # nothing was scanned to its end yet
    recorded = Counts(**manifest.facts["counts"])
    found: Counter[str] = Counter()
    if any(path.startswith("images/") for path in manifest.published):
        for batch in open_dataset(storage, "images").to_batches(columns=["status"]):
            found.update(batch.column("status").to_pylist())
    told = {status: getattr(recorded, status) for status in Status}
    if found != Counter(told):
        raise IntegrityError(
            f"{storage.url}: the run counted {told}, its table of images holds {dict(found)}; "
            "run the job again to derive the table anew"
        )
    return recorded
