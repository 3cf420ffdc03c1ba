"""Files of the gallery onto a disk or an object store. Knows nothing of what is in them."""

from __future__ import annotations

from dataclasses import dataclass

import fsspec


@dataclass(frozen=True, slots=True)
class File:
    """A file to be written: its path below the gallery, and its bytes."""

    path: str
    data: bytes


class Output:
    """A directory or URL that files are written to; writing one again replaces it."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._fs, self._root = fsspec.url_to_fs(self.address)
        self._made: set[str] = set()

    def write(self, file: File) -> None:
        """Write one file, with the folders it needs."""
        path = f"{self._root}/{file.path}"
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            self._fs.makedirs(folder, exist_ok=True)
            self._made.add(folder)
        self._fs.pipe_file(path, file.data)
