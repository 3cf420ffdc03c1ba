"""A manifest: one immutable snapshot of what a run holds, as JSON with its own checksum.

Manifests are numbered; the highest valid one is the whole truth about a run. A task's entry is
kept as JSON text, so that a manifest of 100,000 tasks is loaded and written in about a second.
Knows how manifests are found and read, not when a new one may be written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Counts, File, Receipt
from zfscale.storage.base import Storage

FORMAT = 1
FOLDER = "manifest"
RUNNING = "running"
"""Status of a run whose job has not ended."""
_HEAD = b'{"sha256":"%s","manifest":'
_NAME = re.compile(rf"{FOLDER}/(\d{{8,}})\.json")


@dataclass(frozen=True)
class Manifest:
    """What a run holds.

    `writer` is a random name of the process that wrote it. `fingerprint` are named parts as
    JSON; `stages` maps a stage to its options; `facts` are what the driver wants in run.json.
    `published` are final files by path. `tasks` maps a committed task to the JSON text of its
    entry: see `entry` and `receipt`.
    """

    number: int
    writer: str
    run_id: str
    created: str
    status: str
    fingerprint: Mapping[str, Any]
    stages: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, File] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)

    def receipt(self, task: str) -> Receipt:
        """The receipt of a committed task. Raises KeyError for another."""
        return receipt(task, self.tasks[task])

    def files(self) -> Iterator[File]:
        """Every file that the run holds: of its tasks, then published ones."""
        for task in self.tasks:
            yield from self.receipt(task).files
        yield from self.published.values()


def path(number: int) -> str:
    """Where manifest `number` lies."""
    return f"{FOLDER}/{number:08d}.json"


def number(path: str) -> int | None:
    """The number of a manifest by its path; None for any other file."""
    match = _NAME.fullmatch(path)
    return int(match[1]) if match else None


def entry(receipt: Receipt) -> str:
    """A receipt as short JSON text: files, counts, seconds."""
    task, counts = receipt.task, receipt.counts
    files = [[_short(task, file), file.sha256, file.size] for file in receipt.files]
    numbers = [counts.images, counts.ok, counts.quarantined, counts.duplicate, counts.non_finite]
    return _dump([files, numbers, round(receipt.seconds, 3)])


def receipt(task: str, text: str) -> Receipt:
    """The receipt of a task from its entry."""
    files, counts, seconds = json.loads(text)
    found = tuple(File(_long(task, name, sha), sha, size) for name, sha, size in files)
    return Receipt(task, found, Counts(*counts), seconds)


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest: a JSON object, one task a line."""
    head = {
        "format": FORMAT,
        "number": manifest.number,
        "writer": manifest.writer,
        "run_id": manifest.run_id,
        "created": manifest.created,
        "status": manifest.status,
        "fingerprint": manifest.fingerprint,
        "stages": manifest.stages,
        "facts": manifest.facts,
        "published": {file.path: [file.sha256, file.size] for file in manifest.published.values()},
    }
    tasks = ",\n".join(f"{_dump(task)}:{text}" for task, text in manifest.tasks.items())
    body = f'{_dump(head)[:-1]},"tasks":{{\n{tasks}\n}}}}'.encode()
    return _HEAD % hashlib.sha256(body).hexdigest().encode() + body + b"}\n"


def decode(data: bytes) -> Manifest:
    """The manifest in some bytes. Raises ValueError if they are torn or damaged."""
    size = len(_HEAD % (b"0" * 64))
    body = data[size:-2]
    if data != _HEAD % hashlib.sha256(body).hexdigest().encode() + body + b"}\n":
        raise ValueError("its checksum is wrong")
    content = json.loads(body)
    if content.pop("format") != FORMAT:
        raise UsageError("the run was written by another version of zfscale: use that one")
    content["published"] = {
        path: File(path, sha, size) for path, (sha, size) in content["published"].items()
    }
    content["tasks"] = {task: _dump(value) for task, value in content["tasks"].items()}
    return Manifest(**content)


def latest(storage: Storage) -> tuple[Manifest | None, tuple[str, ...]]:
    """The highest valid manifest, and the paths of damaged ones above it.

    None where no run has begun. Raises IntegrityError if there are manifests and none is valid.
    """
    damaged: list[str] = []
    for _, name in sorted(numbered(storage), reverse=True):
        try:
            return decode(storage.read(name)), tuple(damaged)
        except ValueError:
            damaged.append(name)
    if damaged:
        raise IntegrityError(
            f"{storage.url}: none of {len(damaged)} manifests is intact: it is not known what the "
            "run holds; restore manifest/ from a copy, or use a new run directory"
        )
    return None, ()


def load(storage: Storage) -> Manifest:
    """The manifest of an existing run. Raises UsageError if there is no run."""
    manifest, _ = latest(storage)
    if manifest is None:
        raise UsageError(f"{storage.url}: there is no run here (no manifest)")
    return manifest


def numbered(storage: Storage) -> list[tuple[int, str]]:
    """Number and path of all manifests, the damaged ones too, in order."""
    names = ((number(name), name) for name in storage.list(FOLDER))
    return sorted((at, name) for at, name in names if at is not None)


def _short(task: str, file: File) -> str:
    """The table of a segment, which says its path; the path of any other file."""
    prefix, suffix = f"segments/{task.rpartition('-')[0]}/{task}-", f"-{file.sha256[:16]}.parquet"
    table = file.path.removeprefix(prefix).removesuffix(suffix)
    return table if file.path == prefix + table + suffix else file.path


def _long(task: str, name: str, sha256: str) -> str:
    if "/" in name:
        return name
    return f"segments/{task.rpartition('-')[0]}/{task}-{name}-{sha256[:16]}.parquet"


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
