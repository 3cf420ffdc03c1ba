"""The members of a tar in order, and how WebDataset puts them together to samples.

Headers are walked one by one, for what is damaged has to be told from what ends.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from zfscale.records import Reason
from zfscale.storage.files import RECORD_BYTES

Member = tarfile.TarInfo

# A pax header may hold anything: tarfile itself lets these through.
_BROKEN = (tarfile.TarError, ValueError, RecursionError)


@dataclass
class Group:
    """The members of one sample, as they come."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


def walk(file: BinaryIO, size: int) -> Iterator[Member | Reason]:
    """Headers in order; the reason why, where they end before the archive does.

    `tarfile` ends its iteration silently at a broken header, so it is asked header by header.
    """
    file.seek(0)
    try:
        archive = tarfile.TarFile(
            fileobj=file, mode="r", encoding="utf-8", errors="backslashreplace"
        )
        member = archive.next()
    except _BROKEN:
        yield Reason.UNREADABLE
        return
    while member is not None:
        yield member
        end = archive.offset
        if end > size:
            return  # This member is cut, and known to be.
        file.seek(end)
        try:
            member = tarfile.TarInfo.fromtarfile(archive)
        except _BROKEN:
            reason = _why_no_header(file, end)
            if reason is not None:
                yield reason
            return
        if archive.offset <= end:  # A negative size in a header would make this go on forever.
            yield Reason.UNREADABLE
            return


def _why_no_header(file: BinaryIO, offset: int) -> Reason | None:
    """What ends the archive at `offset`: its end mark, or nothing more (None), or damage."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block.strip(b"\0"):
        return None
    return Reason.TRUNCATED if len(block) < tarfile.BLOCKSIZE else Reason.UNREADABLE


def groups(members: Iterable[Member | Reason]) -> Iterator[Group | Reason]:
    """Consecutive members of one key; a suffix that comes again begins another sample."""
    group: Group | None = None
    for member in members:
        if isinstance(member, Member):
            folder, slash, base = member.name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if member.isdir() or not stem or not dot:
                continue  # Folders, hidden files and files without an ending are no samples.
            key = folder + slash + stem
            suffix = "." + suffix.lower()
            if group is None or group.key != key or suffix in group.members:
                if group is not None:
                    yield group
                group = Group(key)
            group.members[suffix] = member
        else:
            if group is not None:
                yield group
            group = None
            yield member
    if group is not None:
        yield group


def label_member(group: Group) -> Member | None:
    """The member that says the label of a sample: its .cls, else its .json."""
    for suffix in (".cls", ".json"):
        member = group.members.get(suffix)
        if member is not None and member.isreg() and 0 <= member.size <= RECORD_BYTES:
            return member
    return None
