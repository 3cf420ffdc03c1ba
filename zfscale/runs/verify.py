"""Whether the files of a run are still what they were, and whether its images add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from zfscale.errors import IntegrityError
from zfscale.records import Counts, File, Status
from zfscale.runs import record
from zfscale.runs.manifest import AnalysisState, Manifest
from zfscale.runs.tables import dataset_of
from zfscale.storage import base as stores
from zfscale.storage.base import Storage

THREADS = 8
"""Files hashed at a time: an object store answers slowly, a disk does not mind."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is missing (`sha256` is None) or not what it was.

    It belongs to `analysis`; `task` is the id of the task that wrote it and can write it again,
    None for a published file. `sha256` and `size` are what is there now.
    """

    file: File
    analysis: str
    task: str | None
    sha256: str | None
    size: int = 0

    def __str__(self) -> str:
        expected = self.file
        where = (
            f"{self.analysis} task {self.task}" if self.task else f"published by {self.analysis}"
        )
        if self.sha256 is None:
            return f"{expected.path} ({where}) is missing"
        return (
            f"{expected.path} ({where}): expected SHA-256 {expected.sha256} ({expected.size} "
            f"bytes), found {self.sha256} ({self.size} bytes)"
        )


def find_damage(
    storage: Storage, manifest: Manifest, analyses: Collection[str] | None = None
) -> list[Damage]:
    """Every file of some analyses, or of all, that is missing or whose content is wrong."""

    def check(item: tuple[str, str | None, File]) -> Damage | None:
        analysis, task, file = item
        try:
            sha256, size = stores.checksum(storage, file.path)
        except FileNotFoundError:
            return Damage(file, analysis, task, None)
        is_good = (sha256, size) == (file.sha256, file.size)
        return None if is_good else Damage(file, analysis, task, sha256, size)

    chosen = manifest.analyses if analyses is None else analyses
    files = [item for name in chosen for item in _files(name, manifest.analyses[name])]
    with ThreadPoolExecutor(THREADS) as pool:
        return [damage for damage in pool.map(check, files) if damage is not None]


def _files(name: str, state: AnalysisState) -> Iterator[tuple[str, str | None, File]]:
    for receipt in state.receipts():
        for file in receipt.files:
            yield name, receipt.task, file
    for file in state.published.values():
        yield name, None, file


def check_record(storage: Storage, manifest: Manifest) -> None:
    """Raises IntegrityError where run.json does not say what the manifest does."""
    expected = record.encode(manifest)
    if not storage.exists(record.PATH) or storage.read(record.PATH) != expected:
        raise IntegrityError(
            f"{storage.url}/{record.PATH} is not what manifest {manifest.number} says: it was "
            "changed, or a job was killed while it wrote it; run the job again to write it anew"
        )


def check_accounting(storage: Storage, manifest: Manifest) -> dict[str, Counts]:
    """By analysis that lists images: their rows by status, which must be what it counted.

    Raises IntegrityError where they differ: an image would have vanished, or come from nowhere.
    """
    counted = {}
    for name, state in manifest.analyses.items():
        if state.results is None or state.images is None:
            continue
        paths = [file.path for file in state.published.values() if file.table == "images"]
        statuses: Counter[str] = Counter()
        if paths:
            for batch in dataset_of(storage, paths).to_batches(columns=["status"]):
                statuses.update(batch.column("status").to_pylist())
        expected = {status.value: getattr(state.counts, status) for status in Status}
        if statuses != Counter(expected):
            raise IntegrityError(
                f"{storage.url}: {name} counted {expected}, its table {state.images} holds "
                f"{dict(statuses)}; run the job again to derive the table anew"
            )
        counted[name] = state.counts
    return counted
