"""Files of the gallery onto a disk or an object store. Knows nothing of what is in them."""

from __future__ import annotations

from dataclasses import dataclass

from zfscale.storage import open_storage


@dataclass(frozen=True, slots=True)
class File:
    """A file to be written: its path below the gallery, and its bytes."""

    path: str
    data: bytes


class Output:
    """A directory or URL that files are written to; writing one again replaces it."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._storage = open_storage(self.address)

    def write(self, file: File) -> None:
        """Write one file, with the folders it needs."""
        self._storage.write(file.path, file.data)
