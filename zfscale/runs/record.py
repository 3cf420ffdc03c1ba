"""run.json: what a run is and how far its analyses came, for people and for readers of results.

Derived from the manifest and written right after it, so it never says more than is committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zfscale.errors import IntegrityError, UsageError
from zfscale.runs import manifest as manifests
from zfscale.runs.manifest import AnalysisState, Manifest
from zfscale.storage.base import Storage

PATH = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """A run. `manifest` is the number of the manifest that it was derived from.

    `analyses` are without their tasks; `tasks` counts them by analysis. `outdated` names those
    whose results were made from others than there are now. `metadata` says of the run as a whole
    what the driver knows: the job without its analyses, and the preprocessing.
    """

    run_id: str
    created: str
    written: str
    manifest: int
    fingerprint: Mapping[str, Any]
    metadata: Mapping[str, Any]
    analyses: Mapping[str, AnalysisState]
    tasks: Mapping[str, int]
    outdated: tuple[str, ...]

    def is_readable(self, name: str) -> bool:
        """Whether the results of an analysis are all there and belong together."""
        return self.analyses[name].results is not None and name not in self.outdated


def encode(manifest: Manifest) -> bytes:
    """The bytes of the run.json of a manifest."""
    analyses = {}
    for name, state in manifest.analyses.items():
        described = manifests.as_json(state)
        described["outdated"] = manifest.is_outdated(name)
        described["tasks"] = len(state.tasks)
        analyses[name] = described
    content = {
        "run_id": manifest.run_id,
        "created": manifest.created,
        "written": manifest.written,
        "manifest": manifest.number,
        "fingerprint": manifest.fingerprint,
        "metadata": manifest.metadata,
        "analyses": analyses,
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def write(storage: Storage, manifest: Manifest) -> None:
    """Bring run.json up to a manifest."""
    storage.publish(PATH, encode(manifest))


def read(storage: Storage) -> RunRecord:
    """The record of a run. Raises UsageError if there is none, IntegrityError if it is damaged."""
    try:
        content = json.loads(storage.read(PATH))
        analyses = content.pop("analyses")
        return RunRecord(
            **content,
            analyses={name: manifests.from_json(each) for name, each in analyses.items()},
            tasks={name: each["tasks"] for name, each in analyses.items()},
            outdated=tuple(name for name, each in analyses.items() if each["outdated"]),
        )
    except FileNotFoundError as error:
        raise UsageError(f"{storage.url}: there is no run here (no {PATH})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{storage.url}/{PATH} is damaged, or was written by another version of zfscale "
            f"({error}); run the job again to write it anew"
        ) from error


def check_unclaimed(storage: Storage, folders: Iterable[str]) -> None:
    """Refuse to begin a run among somebody else's files: raises UsageError naming one."""
    for folder in folders:
        files = storage.list(folder)
        if files:
            raise UsageError(
                f"run: {storage.url} is no run, and holds {files[0]}; name an empty or new folder"
            )
