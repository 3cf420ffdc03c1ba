"""A storage on an object store through fsspec, `s3://` or `gs://`. Reached through `open_storage`.

One put is durable and all or nothing there. "Create" is a conditional put (If-None-Match).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from zfscale.errors import UsageError
from zfscale.storage.access import reaching
from zfscale.storage.base import check_path, is_leftover
from zfscale.storage.remote import RemoteFile


@dataclass(frozen=True)
class ObjectStore:
    """A storage below `root` of an fsspec file system; `url` names both."""

    url: str
    fs: fsspec.AbstractFileSystem
    root: str

    @classmethod
    def at(cls, url: str) -> ObjectStore:
        """The storage at a URL. Raises UsageError for an unknown kind of URL."""
        try:
            with reaching(url):
                fs, root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{url}: cannot open this kind of address: {error}") from error
        return cls(url.rstrip("/"), fs, root.rstrip("/"))

    def read(self, path: str) -> bytes:
        with reaching(self.url):
            return cast("bytes", self.fs.cat_file(self._at(path)))

    def open(self, path: str) -> IO[bytes]:
        return cast("IO[bytes]", RemoteFile(self.fs, self._at(path), f"{self.url}/{path}"))

    def publish(self, path: str, data: bytes) -> None:
        with reaching(self.url):
            self.fs.pipe_file(self._at(path), data)

    def write(self, path: str, data: bytes) -> None:
        self.publish(path, data)

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(suffix=".zfscale") as stream:
            yield cast("IO[bytes]", stream)
            stream.flush()
            with reaching(self.url):
                self.fs.put_file(stream.name, self._at(path))

    def create(self, path: str, data: bytes) -> bool:
        with reaching(self.url):
            try:
                self.fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return False
            except PermissionError:
                raise
            except OSError:
                # Stores word "the condition does not hold" differently; that it exists says it too.
                if self.exists(path):
                    return False
                raise
        return True

    def exists(self, path: str) -> bool:
        with reaching(self.url):
            self.fs.invalidate_cache()
            try:  # `isfile` of fsspec would take every error for a no
                return bool(self.fs.info(self._at(path))["type"] == "file")
            except FileNotFoundError:
                return False

    def sizes(self, prefix: str = "") -> dict[str, int]:
        start = self._at(prefix) if prefix else self.root
        with reaching(self.url):
            self.fs.invalidate_cache()  # another process may have written since the last listing
            found = self.fs.find(start, detail=True)
        return {name[len(self.root) + 1 :]: int(info["size"]) for name, info in found.items()}

    def list(self, prefix: str = "") -> list[str]:
        return sorted(path for path in self.sizes(prefix) if not is_leftover(path))

    def delete(self, path: str) -> None:
        if self.exists(path):
            with reaching(self.url):
                self.fs.rm_file(self._at(path))

    def local(self, path: str) -> Path | None:  # noqa: ARG002
        return None

    def filesystem(self) -> Any:
        from pyarrow import fs

        return fs.SubTreeFileSystem(self.root, fs.PyFileSystem(fs.FSSpecHandler(self.fs)))

    def zarr_store(self, path: str) -> Any:
        from zarr.storage import FsspecStore

        return FsspecStore.from_mapper(self.fs.get_mapper(self._at(path)), read_only=True)

    def _at(self, path: str) -> str:
        return f"{self.root}/{check_path(path)}"
