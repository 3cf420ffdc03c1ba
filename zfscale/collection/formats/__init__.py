"""Image formats: one file = one format, found by name, and what such a file holds.

The modules of this package are the built-in formats. Another package adds one by an entry point
of the group `zfscale.sources`, whose name is that of the format and which leads to a module (or
any object) with the members of `Format`. No list has to be extended.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from zfscale import plugins
from zfscale.errors import UsageError
from zfscale.records import ImageRef, Sample, Shard
from zfscale.storage.files import Place

GROUP = "zfscale.sources"
"""The entry points by which another package adds a format."""

LOOSE = "folder"
"""The format of images that are files of their own. Every other one is a format of containers."""

Warn = Callable[[str], None]


class Format(Protocol):
    """What a format has to say. A container is a file that holds any number of images.

    Bad input inside of a container is a Sample with a reason, never an exception. Errors of a
    network or a disk are raised, for they may pass; so are FileNotFoundError, PermissionError and
    `files.NotAFile`, of which the caller makes unreadable samples.

    A format whose images are no ranges of bytes has one more member, `fetch(ref)`: the bytes of
    the one image that is referred to, read again, or None where there is none any more. Without
    it the range of the reference is read.
    """

    SUFFIXES: tuple[str, ...]
    """Endings of the file names it claims, in lower case, each with its dot."""

    def shards(self, places: Sequence[Place]) -> list[Shard]:
        """One for each file of these places, as they were listed: nothing is opened."""

    def index(self, shard: Shard, warn: Warn) -> Iterator[Sample]:
        """All samples of a shard in order, without their data.

        An image is referred to by offset and length in bytes of a file, or by two numbers of the
        format's own, `row_group` and `row`, which its `fetch` understands. What has a reason will
        not be read. `warn` takes a sentence for the user, e.g. on an index file that is wrong.
        """

    def read(self, shard: Shard, samples: Sequence[Sample]) -> Iterator[Sample]:
        """Some samples of the index, in their order, each with its data or with a reason.

        Samples may be left out, and the iterator may end early: what does not come is unreadable.
        On an object store this is one pass over the bytes from the first sample to the last.
        """

    def class_names(self, shards: Sequence[Shard]) -> list[str] | None:
        """Names by label, where the format says them."""

    def records(self, uri: str, refs: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, bytes]]:
        """The JSON records of those images of one file that have one; no bytes for a record
        longer than `files.RECORD_BYTES`.
        """


_MEMBERS = ("SUFFIXES", "shards", "index", "read", "class_names", "records")


def names() -> list[str]:
    """The names of all formats there are, sorted."""
    return sorted({*_built_in(), *_plugins()})


@functools.cache
def get(name: str) -> Format:
    """The format of this name. Raises UsageError, which lists what there is, or names the package
    that adds a broken one.
    """
    if name in _built_in():
        module: Any = importlib.import_module(f"{__name__}.{name}")
    elif name in _plugins():
        entry = _plugins()[name]
        module = plugins.load(entry, "format")
        missing = [member for member in _MEMBERS if not hasattr(module, member)]
        if missing:
            raise UsageError(
                f"{plugins.described(entry, 'format')}: {entry.value} has no {', '.join(missing)}"
            )
    else:
        raise UsageError(f"format: {name!r} is unknown; there are {', '.join(names())}")
    return module  # type: ignore[no-any-return]


def claiming(uri: str) -> str | None:
    """The format that claims the name of a file, if one does."""
    return next((name for name in names() if uri.lower().endswith(get(name).SUFFIXES)), None)


@functools.cache
def _built_in() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(__path__))


@functools.cache
def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
