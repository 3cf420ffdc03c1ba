"""Shared by the tests of collections: one preprocessing, and an object store that counts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from zfscale.records import Preprocessing


@pytest.fixture
def preprocessing() -> Preprocessing:
    """Small enough to be quick; the mean colour is easy to recognise."""
    return Preprocessing(resize=64, crop=(56, 56), mean=(100.0, 150.0, 200.0))


class Counted(MemoryFileSystem):
    """Files in memory behind URLs, as in an object store: each read of bytes is one request."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    requests: ClassVar[list[tuple[str, int]]] = []
    """The name of the file and the bytes that came, of each read."""

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data = super().cat_file(path, start=start, end=end, **options)
        self.requests.append((path.rpartition("/")[2], len(data)))
        return data

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("counted://", "memory://"))

    def open(self, path: str, *args: Any, **options: Any) -> Any:
        mode = options.get("mode", args[0] if args else "rb")
        caller = sys._getframe(1).f_code.co_name
        assert "w" in mode or caller == "cat_file", "whole files are not opened"
        return super().open(path, *args, **options)


@pytest.fixture
def counted() -> Iterator[type[Counted]]:
    """The file system of `counted://`, empty."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    Counted.store.clear()
    Counted.pseudo_dirs[:] = [""]
    Counted.requests.clear()
    yield Counted
    Counted.store.clear()
