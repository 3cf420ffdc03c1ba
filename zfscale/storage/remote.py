"""A file of an object store as a seekable stream that fetches what is read in large pieces."""

from __future__ import annotations

import io
from typing import Any

import fsspec

from zfscale.storage.access import reaching

CHUNK = 8 << 20
"""Bytes of one request where a file is read in order."""


def size_now(fs: fsspec.AbstractFileSystem, path: str) -> int:
    """Bytes in a file, whatever an earlier listing said."""
    fs.invalidate_cache(fs._parent(path))
    return int(fs.size(path) or 0)


def fetch(fs: fsspec.AbstractFileSystem, path: str, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop` of a file, or fewer where it ends before."""
    try:
        return bytes(fs.cat_file(path, start=start, end=stop))
    except (FileNotFoundError, PermissionError):
        raise
    except OSError:
        if start >= size_now(fs, path):  # Stores refuse a range that begins behind the end.
            return b""
        raise


class RemoteFile(io.RawIOBase):
    """A file behind an fsspec URL, for reading.

    Read in order, every byte is fetched once, `chunk` bytes a request, none beyond `stop`; what
    is skipped by more than a chunk is not fetched. The last chunk stays, for short ways back.
    With `chunk` 0 each read is one request of exactly the bytes that are asked for.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        url: str,
        stop: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._fs, self._path, self._url, self._chunk = fs, path, url, chunk
        with reaching(url):
            self.size = size_now(fs, path)
        self._stop = self.size if stop is None else min(stop, self.size)
        self._at = 0
        self._begin = 0  # of what is held
        self._held = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        data = self._bytes(self._at, self._at + size)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _bytes(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        if self._chunk == 0 or start < self._begin:  # too far back: what is held stays
            return self._fetch(start, stop)
        end = self._begin + len(self._held)
        if stop > end:
            begin = end if self._held and start <= end + self._chunk else start
            fetched = self._fetch(begin, max(stop, min(begin + self._chunk, self._stop)))
            if begin == end:
                keep = min(start, end - self._chunk)
                self._held = self._held[max(keep - self._begin, 0) :] + fetched
                self._begin = max(keep, self._begin)
            else:
                self._held, self._begin = fetched, begin
        return self._held[start - self._begin : stop - self._begin]

    def _fetch(self, start: int, stop: int) -> bytes:
        with reaching(self._url):
            return fetch(self._fs, self._path, start, stop)
