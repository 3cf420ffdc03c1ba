"""Bytes anywhere: files of a run that are published whole or created once, and files of images."""

from __future__ import annotations

from zfscale.storage.base import Storage
from zfscale.storage.local import Directory
from zfscale.storage.objects import ObjectStore


def open_storage(url: str) -> Storage:
    """The storage at a directory or fsspec URL. Nothing is created or contacted yet."""
    if "://" not in url or url.startswith("file://"):
        return Directory.at(url.removeprefix("file://"))
    return ObjectStore.at(url)
