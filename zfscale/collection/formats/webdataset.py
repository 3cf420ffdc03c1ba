"""WebDataset tars: members that share a name up to its first dot are one sample.

Headers are walked and data is read where it lies; nothing is ever extracted. An image is
referred to by the offset and length of its data in the tar.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from zfscale.collection import classes
from zfscale.errors import UsageError
from zfscale.records import ImageRef, Reason, Sample, Shard
from zfscale.storage import files
from zfscale.storage.files import IMAGE_SUFFIXES, RECORD_BYTES, Entry, Place

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
SUFFIXES = (".tar", *_COMPRESSED)

# A pax header may hold anything: tarfile itself lets these through.
_BROKEN = (tarfile.TarError, ValueError, RecursionError)


@dataclass
class _Group:
    """The members of one sample, as they come."""

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)


def shards(places: Sequence[Place]) -> list[Shard]:
    """One shard per tar."""
    _index.cache_clear()
    return files.in_threads(_shard, [entry for place in places for entry in place.files])


def _shard(entry: Entry) -> Shard:
    try:
        images = len(_index(entry.uri, entry.size))
    except (FileNotFoundError, PermissionError):
        images = 1  # One sample stands for the file: unreadable.
    return Shard("webdataset", entry.uri, images, entry.size)


def read(shard: Shard, start: int, stop: int, skip: Collection[int]) -> Iterator[Sample]:
    """Samples `start` to `stop`, less those in `skip`."""
    with files.open_file(shard.uri) as file:
        for sample in _index(shard.uri, shard.size)[start:stop]:
            if sample.index in skip:
                continue
            offset, length = sample.ref.offset, sample.ref.length
            if sample.reason is not None or offset is None or length is None:
                yield sample
                continue
            file.seek(offset)
            data = file.read(length)
            if len(data) < length:
                yield replace(sample, reason=Reason.TRUNCATED)
            else:
                yield replace(sample, data=data)


def class_names(shards: Sequence[Shard]) -> None:
    """A tar does not say how its classes are called."""


def records(uri: str, refs: Sequence[ImageRef]) -> Iterator[tuple[ImageRef, bytes]]:
    """The .json of each sample whose image is wanted: one walk over the headers of the tar."""
    wanted = {ref.offset: ref for ref in refs}
    with files.open_file(uri) as file:
        for item in _groups(_members(file, files.size(uri))):
            image = None if isinstance(item, Reason) else _image(item)
            if isinstance(item, Reason) or image is None or image.offset_data not in wanted:
                continue
            member = item.members.get(".json")
            if member is not None and member.isreg():
                small = 0 <= member.size <= RECORD_BYTES
                file.seek(member.offset_data)
                yield wanted.pop(image.offset_data), file.read(member.size if small else 0)


@functools.lru_cache(maxsize=4)
def _index(uri: str, size: int) -> tuple[Sample, ...]:
    """All samples of a tar without their data. Tasks of one shard follow each other: cached."""
    samples: list[Sample] = []
    seen: set[str] = set()
    with files.open_file(uri) as file:
        if file.read(6).startswith(_MAGIC):
            raise UsageError(
                f"{uri}: a compressed tar cannot be read from the middle; decompress it "
                "(images are compressed already, little is gained)"
            )
        for item in _groups(_members(file, size)):
            index = len(samples)
            if isinstance(item, Reason):
                key = f"{files.name(uri)}#{index}"
                samples.append(Sample(index, key, None, ImageRef(uri), reason=item))
            else:
                sample = _sample(index, item, uri, size, file)
                if item.key in seen:
                    sample = replace(sample, reason=Reason.DUPLICATE_KEY)
                seen.add(item.key)
                samples.append(sample)
    return tuple(samples)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo | Reason]:
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


def _groups(members: Iterator[tarfile.TarInfo | Reason]) -> Iterator[_Group | Reason]:
    """Consecutive members of one key; a suffix that comes again begins another sample."""
    group: _Group | None = None
    for member in members:
        if isinstance(member, tarfile.TarInfo):
            folder, slash, base = member.name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if member.isdir() or not stem or not dot:
                continue  # Folders, hidden files and files without an ending are no samples.
            key = folder + slash + stem
            suffix = "." + suffix.lower()
            if group is None or group.key != key or suffix in group.members:
                if group is not None:
                    yield group
                group = _Group(key)
            group.members[suffix] = member
        else:
            if group is not None:
                yield group
            group = None
            yield member
    if group is not None:
        yield group


def _sample(index: int, group: _Group, uri: str, size: int, file: BinaryIO) -> Sample:
    image = _image(group)
    if image is None:
        # Keys may come again, so what tells such samples apart is where they begin.
        ref = ImageRef(uri, next(iter(group.members.values())).offset_data)
        return Sample(index, group.key, None, ref, reason=Reason.NO_IMAGE)
    reason = None
    if image.name.startswith("/") or ".." in image.name.split("/"):
        reason = Reason.UNSAFE_NAME
    elif not image.isreg() or image.issparse():
        reason = Reason.NOT_A_FILE
    elif image.offset_data + image.size > size:
        reason = Reason.TRUNCATED
    ref = ImageRef(uri, image.offset_data, image.size)
    return Sample(index, group.key, _label(group, file), ref, reason=reason)


def _image(group: _Group) -> tarfile.TarInfo | None:
    """The image of a sample: `key.jpg` rather than `key.mask.jpg`, else the first one."""
    images = [suffix for suffix in group.members if suffix.endswith(IMAGE_SUFFIXES)]
    plain = [suffix for suffix in images if suffix in IMAGE_SUFFIXES]
    return group.members[(plain or images)[0]] if images else None


def _label(group: _Group, file: BinaryIO) -> int | None:
    for suffix, parse in ((".cls", classes.label), (".json", classes.json_label)):
        member = group.members.get(suffix)
        if member is not None and member.isreg() and member.size <= RECORD_BYTES:
            file.seek(member.offset_data)
            return parse(file.read(member.size))
    return None
