"""WebDataset tars: members that share a name up to its first dot are one sample.

Headers are walked and data is read where it lies; nothing is ever extracted. An image is
referred to by the offset and length of its data in the tar. On an object store, where walking
means to fetch the whole tar, an index file beside it is used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from zfscale.collection import classes, tar_index
from zfscale.collection.formats import Warn
from zfscale.collection.tar import Group, Member, groups, label_member, walk
from zfscale.errors import UsageError
from zfscale.records import ImageRef, Reason, Sample, Shard
from zfscale.storage import files
from zfscale.storage.files import IMAGE_SUFFIXES, RECORD_BYTES, Entry, Place

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
SUFFIXES = (".tar", *_COMPRESSED)

Bytes = Callable[[Member], bytes]
"""The data of a member, which is small."""


def shards(places: Sequence[Place]) -> list[Shard]:
    """One shard per tar."""
    return [_shard(entry) for place in places for entry in place.files]


def _shard(entry: Entry) -> Shard:
    if entry.uri.lower().endswith(_COMPRESSED):
        _refuse_compressed(entry.uri, files.read_range(entry.uri, 0, 6))
    return Shard("webdataset", entry.uri, entry.size, entry.version)


def _refuse_compressed(uri: str, beginning: bytes) -> None:
    if beginning.startswith(_MAGIC):
        raise UsageError(
            f"{uri}: a compressed tar cannot be read from the middle; decompress it "
            "(images are compressed already, little is gained)"
        )


def index(shard: Shard, warn: Warn) -> Iterator[Sample]:
    """All samples, from an index file or from the headers. Raises UsageError for a compressed tar.

    A local tar is walked from header to header by seeking; one on an object store is read once.
    """
    uri, size = shard.uri, shard.size
    if files.local_path(uri) is None:
        indexed = tar_index.read(uri, size, warn)
        if indexed is not None:
            yield from _samples(indexed.members, uri, size, indexed.data)
            return
    with files.open_file(uri) as file:
        _refuse_compressed(uri, file.read(6))

        def data(member: Member) -> bytes:
            file.seek(member.offset_data)
            return file.read(member.size)

        yield from _samples(walk(file, size), uri, size, data)


def _samples(
    members: Iterable[Member | Reason], uri: str, size: int, data: Bytes
) -> Iterator[Sample]:
    seen: set[str] = set()
    for index, item in enumerate(groups(members)):
        if isinstance(item, Reason):
            yield Sample(index, f"{files.name(uri)}#{index}", None, ImageRef(uri), reason=item)
            continue
        sample = _sample(index, item, uri, size, data)
        yield replace(sample, reason=Reason.DUPLICATE_KEY) if item.key in seen else sample
        seen.add(item.key)


def read(shard: Shard, samples: Sequence[Sample]) -> Iterator[Sample]:
    """From the first sample to the last, in the order of the tar."""
    ends = [(sample.ref.offset or 0) + (sample.ref.length or 0) for sample in samples]
    with files.open_file(shard.uri, stop=max(ends)) as file:
        for sample in samples:
            offset, length = sample.ref.offset, sample.ref.length
            if offset is None or length is None:
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
        for item in groups(walk(file, files.size(uri))):
            image = None if isinstance(item, Reason) else _image(item)
            if isinstance(item, Reason) or image is None or image.offset_data not in wanted:
                continue
            member = item.members.get(".json")
            if member is not None and member.isreg():
                small = 0 <= member.size <= RECORD_BYTES
                file.seek(member.offset_data)
                yield wanted.pop(image.offset_data), file.read(member.size if small else 0)


def _sample(index: int, group: Group, uri: str, size: int, data: Bytes) -> Sample:
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
    return Sample(index, group.key, _label(group, data), ref, reason=reason)


def _image(group: Group) -> Member | None:
    """The image of a sample: `key.jpg` rather than `key.mask.jpg`, else the first one."""
    images = [suffix for suffix in group.members if suffix.endswith(IMAGE_SUFFIXES)]
    plain = [suffix for suffix in images if suffix in IMAGE_SUFFIXES]
    return group.members[(plain or images)[0]] if images else None


def _label(group: Group, data: Bytes) -> int | None:
    member = label_member(group)
    if member is None:
        return None
    parse = classes.label if member.name.lower().endswith(".cls") else classes.json_label
    return parse(data(member))
