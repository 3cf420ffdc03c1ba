"""run.json: what a run is and how far it came, for people and for readers of its results.

Derived from the manifest and written right after it, so it never says more than is committed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zfscale.errors import IntegrityError, UsageError
from zfscale.records import File
from zfscale.runs.manifest import Manifest
from zfscale.storage.base import Storage

PATH = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """A run. In the file, the `facts` stand beside the other keys.

    `manifest` is the number of the manifest that it was derived from. `stages` maps a stage to
    its options and the number of its committed tasks. `facts` come from the driver: the job,
    versions, layers, preprocessing, classes, the final counts.
    """

    run_id: str
    created: str
    status: str
    manifest: int
    fingerprint: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    published: Mapping[str, File]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, manifest: Manifest) -> RunRecord:
        """What a manifest says of its run."""
        tasks = Counter(task.rpartition("-")[0] for task in manifest.tasks)
        stages = {
            stage: {"options": options, "tasks": tasks[stage]}
            for stage, options in manifest.stages.items()
        }
        return cls(
            manifest.run_id,
            manifest.created,
            manifest.status,
            manifest.number,
            manifest.fingerprint,
            stages,
            manifest.published,
            manifest.facts,
        )


KEYS = frozenset(name for name in RunRecord.__dataclass_fields__ if name != "facts")
"""Keys of run.json that no fact may have."""


def encode(record: RunRecord) -> bytes:
    """The bytes of run.json."""
    content = {name: getattr(record, name) for name in RunRecord.__dataclass_fields__}
    files = record.published.values()
    content["published"] = {f.path: {"sha256": f.sha256, "size": f.size} for f in files}
    return (json.dumps(content | content.pop("facts"), indent=1) + "\n").encode()


def write(storage: Storage, manifest: Manifest) -> None:
    """Bring run.json up to a manifest; nothing is written if it is so already."""
    data = encode(RunRecord.of(manifest))
    if not storage.exists(PATH) or storage.read(PATH) != data:
        storage.publish(PATH, data)


def read(storage: Storage) -> RunRecord:
    """The record of a run. Raises UsageError if there is none, IntegrityError if it is damaged."""
    try:
        content = json.loads(storage.read(PATH))
        known = {name: content.pop(name) for name in KEYS}
    except FileNotFoundError as error:
        raise UsageError(f"{storage.url}: there is no run here (no {PATH})") from error
    except (ValueError, KeyError) as error:
        raise IntegrityError(
            f"{storage.url}/{PATH} is damaged ({error}); run the job again to write it anew"
        ) from error
    known["published"] = {path: File(path, **rest) for path, rest in known["published"].items()}
    return RunRecord(**known, facts=content)


def check_unclaimed(storage: Storage, folders: Iterable[str]) -> None:
    """Refuse to begin a run among somebody else's files: raises UsageError naming one."""
    for folder in folders:
        found = storage.list(folder)
        if found:
            raise UsageError(
                f"run: {storage.url} is no run, and holds {found[0]}; name an empty or new folder"
            )
