"""Garbage: what lies in a run and nothing refers to. Deleted only when asked."""

from __future__ import annotations

from collections.abc import Iterator

from zfscale.runs import manifest as manifests
from zfscale.runs.ledger import Ledger
from zfscale.runs.manifest import Manifest
from zfscale.storage.base import Storage, is_leftover, is_probe

Garbage = tuple[str, int, str]
"""path, size in bytes, why it is garbage"""


def garbage(storage: Storage) -> list[Garbage]:
    """All garbage of a run, by path. Changes nothing.

    While a job runs, the results that it has not committed yet are among it. Files that zfscale
    does not know, such as a gallery or notes, are never garbage.
    """
    manifest = manifests.load(storage)
    sizes = storage.sizes()
    return [(path, sizes[path], why) for path, why in _judge(sorted(sizes), manifest)]


def collect(storage: Storage) -> list[Garbage]:
    """Delete all garbage of a run; what was deleted.

    First takes the run over with a commit of its own, so that a job that still writes to it
    stops at its next commit instead of committing what was deleted.
    """
    Ledger.take_over(storage)
    found = garbage(storage)
    for path, _, _ in found:
        storage.delete(path)
    return found


def _judge(paths: list[str], manifest: Manifest) -> Iterator[tuple[str, str]]:
    current = {file.path for file in manifest.files()}
    datasets = {path.split("/")[0] for path in current} | {"segments"}
    for path in paths:
        number = manifests.number(path)
        if is_leftover(path):
            yield path, "temporary file of a killed writer"
        elif is_probe(path):
            yield path, "probe of a killed writer"
        elif number is not None and number != manifest.number:
            yield path, "superseded manifest" if number < manifest.number else "damaged manifest"
        elif path.split("/")[0] in datasets and path not in current:
            yield path, "result that no commit refers to"
