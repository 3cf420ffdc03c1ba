"""The one layer through which everything is read and written, on a disk or an object store.

`open_storage` gives the files below an address: those of a run, or of a gallery. `files` reads
the files of a collection wherever they lie. `access` says what is wrong with an address.

A kind of address is known by its scheme. What fsspec reaches needs nothing more, if its file
system can create a file only where there is none (`ObjectStore.create`). Another package adds a
storage of its own by an entry point of the group `zfscale.storages`: its name is the scheme, e.g.
`hdfs`, and it leads to a function from a URL to a `Storage`, e.g. the `at` of a subclass of
`ObjectStore`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from zfscale import plugins
from zfscale.storage.base import Storage
from zfscale.storage.local import Directory
from zfscale.storage.objects import ObjectStore

GROUP = "zfscale.storages"
"""The entry points by which another package adds a storage."""


def open_storage(url: str) -> Storage:
    """The storage at a directory or URL. Nothing is created or contacted yet.

    Raises UsageError for a scheme that nothing is known of, and where the package that adds it
    is broken.
    """
    scheme, separator, path = url.partition("://")
    if not separator:
        return Directory.at(url)
    if scheme == "file":
        return Directory.at(path)
    added = _plugins().get(scheme)
    if added is None:
        return ObjectStore.at(url)
    opener: Callable[[str], Storage] = plugins.load(added, "storage")
    return opener(url)


@functools.cache
def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
