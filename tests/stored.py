"""Tables written as a publication writes them, and read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zfscale.records import Columns, File, Table
from zfscale.runs import tables
from zfscale.storage.base import Storage


def write(
    storage: Storage,
    rows: Iterable[tuple[Table, Columns]],
    run_id: str = "r",
    published_as: Callable[[str], str] = str,
) -> list[File]:
    """Publish rows in the order in which they are given; the files, in the order of their paths."""
    with tables.writing(storage, run_id, published_as) as writer:
        for table, columns in rows:
            writer.add(table, columns)
    return sorted(writer.files, key=lambda file: file.path)


def write_one(storage: Storage, table: Table, columns: Columns, run_id: str = "r") -> list[File]:
    """Publish one table, given at once."""
    return write(storage, [(table, columns)], run_id)


def paths(files: Iterable[File]) -> list[str]:
    """Where the files lie."""
    return [file.path for file in files]
