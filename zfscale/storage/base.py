"""Bytes under a path: in a local directory, or in an object store through fsspec.

Two ways to write, both all or nothing: `publish` puts a whole file in its place, `create` does
so only where there is none. Neither is acknowledged before it is durable. (`write` is for what
can be made again.) Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

from zfscale.errors import UsageError
from zfscale.records import File

CHUNK = 8 << 20


class Storage(Protocol):
    """A run's files by path relative to its root, e.g. `winners/layer=conv1/part-00000.parquet`.

    Storages are picklable: a worker gets the one of its driver. Where credentials or permission
    are missing every method raises a UsageError that names the address and the setting.
    """

    def __hash__(self) -> int: ...

    @property
    def url(self) -> str:
        """Directory or URL of the root."""

    def read(self, path: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""

    def open(self, path: str) -> IO[bytes]:
        """A seekable reader of a file. Raises FileNotFoundError."""

    def publish(self, path: str, data: bytes) -> None:
        """Put a whole file in its place, over what was there: readers see the old or the new."""

    def write(self, path: str, data: bytes) -> None:
        """Put a file in its place without waiting until it is durable: fast for many files."""

    def writing(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """`publish` for what does not fit in memory: published when the block ends well."""

    def create(self, path: str, data: bytes) -> bool:
        """Put a whole file where there is none; False if there is one, whoever came first."""

    def exists(self, path: str) -> bool: ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every file below a directory, leftovers of killed writers included."""

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def local(self, path: str) -> Path | None:
        """The file on this machine's disk, or None for an object store."""

    def filesystem(self) -> Any:
        """The root as a pyarrow.fs.FileSystem."""

    def zarr_store(self, path: str) -> Any:
        """A directory as a zarr.abc.store.Store to read from, e.g. `switches.zarr`."""

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all files below a directory, sorted."""


def file(path: str, data: bytes) -> File:
    """The record of a file with these bytes."""
    return File(path, hashlib.sha256(data).hexdigest(), len(data))


def checksum(storage: Storage, path: str, chunk: int = CHUNK) -> tuple[str, int]:
    """SHA-256 and size of a stored file, read in pieces of `chunk` bytes."""
    digest, size = hashlib.sha256(), 0
    with storage.open(path) as stream:
        for piece in pieces(stream, chunk):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def pieces(stream: IO[bytes], chunk: int = CHUNK) -> Iterator[bytes]:
    """What is left of a stream, `chunk` bytes at a time."""
    while piece := stream.read(chunk):
        yield piece


def probe(storage: Storage) -> None:
    """Check that the second of two writers would lose. Raises UsageError where it would not.

    Without it two drivers on one run could overwrite each other's manifests.
    """
    path = f"manifest/probe-{uuid.uuid4().hex}"
    try:
        first = storage.create(path, b"first")
        second = storage.create(path, b"second")
        kept = storage.read(path)
        storage.delete(path)
    except (OSError, NotImplementedError) as error:
        raise UsageError(f"{storage.url}: cannot write results here: {error}") from error
    if not first or second or kept != b"first":
        raise UsageError(
            f"{storage.url}: this storage lets a second writer overwrite a file that must be "
            "created once; keep the run on a local disk or on an object store with "
            "conditional writes (If-None-Match)"
        )


def is_leftover(path: str) -> bool:
    """Whether a path is a temporary file of a writer, dead or alive."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")


def is_probe(path: str) -> bool:
    """Whether a path is a probe of a killed writer."""
    return path.startswith("manifest/probe-")


def check_path(path: str) -> str:
    """The path itself. Raises ValueError if it could leave the root or is not normal."""
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"not a path inside a run: {path!r}")
    return path
