"""A storage on a local disk, durable against loss of power. Reached through `open_storage`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from zfscale.storage.base import check_path, is_leftover


@dataclass(frozen=True)
class Directory:
    """A storage in `root`, an absolute path."""

    root: Path

    @classmethod
    def at(cls, path: str) -> Directory:
        """The storage in a directory, which need not exist yet."""
        return cls(Path(path).expanduser().absolute())

    @property
    def url(self) -> str:
        return str(self.root)

    def read(self, path: str) -> bytes:
        return self.local(path).read_bytes()

    def open(self, path: str) -> IO[bytes]:
        return self.local(path).open("rb")

    def publish(self, path: str, data: bytes) -> None:
        with self.writing(path) as stream:
            stream.write(data)

    def write(self, path: str, data: bytes) -> None:
        target = self.local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        target = self.local(path)
        with _durable(target) as (temporary, stream):
            yield stream
            _sync(stream)
            os.rename(temporary, target)  # noqa: PTH104
        _sync_directory(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        target = self.local(path)
        with _durable(target) as (temporary, stream):
            stream.write(data)
            _sync(stream)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
        _sync_directory(target.parent)
        return True

    def exists(self, path: str) -> bool:
        return self.local(path).is_file()

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        start = self.local(prefix) if prefix else self.root
        for folder, _, names in os.walk(start):
            for name in names:
                path = Path(folder, name)
                try:
                    size = path.stat().st_size
                except FileNotFoundError:  # a temporary file that was renamed meanwhile
                    continue
                found[path.relative_to(self.root).as_posix()] = size
        return found

    def list(self, prefix: str = "") -> list[str]:
        return sorted(path for path in self.sizes(prefix) if not is_leftover(path))

    def delete(self, path: str) -> None:
        self.local(path).unlink(missing_ok=True)

    def local(self, path: str) -> Path:
        return self.root / check_path(path)

    def filesystem(self) -> Any:
        from pyarrow import fs

        return fs.SubTreeFileSystem(str(self.root), fs.LocalFileSystem())

    def zarr_store(self, path: str) -> Any:
        from zarr.storage import LocalStore

        return LocalStore(self.local(path), read_only=True)


@contextmanager
def _durable(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A temporary file beside its target; gone afterwards unless it was renamed."""
    _make_directory(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w+b") as stream:
            yield temporary, stream
    finally:
        temporary.unlink(missing_ok=True)


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _make_directory(directory: Path) -> None:
    """Make a directory and its parents; a new entry is durable once its parent is synced."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
