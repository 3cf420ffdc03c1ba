"""Index files beside tars: where the members of a tar lie, so that it need not be walked.

The format is that of NVIDIA DALI, written by its tool wds2idx as NAME.idx beside NAME.tar: a line
`v1.2 SAMPLES`, then a line a sample with `SUFFIX OFFSET SIZE NAME` for each of its members. (The
JSON files of WebDataset's wids list whole tars, and not what is in them.) Such a file names
regular members alone, and nothing says that it belongs to the tar as it is now. So the headers
that it does not account for are read: those of the first and the last member, whatever lies
between members beyond one header each, and what comes
after the last one, so that links and hidden files are found where the tar has them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from tarfile import BLOCKSIZE

from zfscale.collection.formats import Warn
from zfscale.collection.tar import Group, Member, groups, label_member, walk
from zfscale.errors import UsageError
from zfscale.storage import files

_GAP_BYTES = 1 << 20
"""More between two members than this is data that the index file does not list."""


class _Contradiction(Exception):
    """What is wrong with an index file."""


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The members of a tar in order, and the data of those that say labels, by their offset."""

    members: tuple[Member, ...]
    labels: Mapping[int, bytes]

    def data(self, member: Member) -> bytes:
        """The data of a member that says a label."""
        return self.labels[member.offset_data]


def read(uri: str, size: int, warn: Warn) -> TarIndex | None:
    """What the index file beside a tar of `size` bytes says; None where there is none to trust.

    Besides the index file only the labels are read, and the headers that it leaves in doubt.
    """
    found = _beside(uri)
    if found is None:
        return None
    place, text = found
    try:
        members = tuple(_checked(uri, size, _parse(text)))
    except _Contradiction as wrong:
        warn(f"{place}: {wrong}; not used, {files.name(uri)} is read as a whole instead")
        return None
    return TarIndex(members, _labels(uri, members))


def _beside(uri: str) -> tuple[str, bytes] | None:
    """The URI and the text of the index file, if there is one."""
    if files.is_web(uri):
        return None  # A web server cannot be trusted to say what is not there.
    folder, name = files.parent(uri), files.name(uri)
    stems = (name[:1] + name[1:].partition(".")[0], name.rpartition(".")[0])  # a.b.tar: a, a.b
    for stem in dict.fromkeys(stems):
        place = f"{folder}/{stem}.idx"
        try:
            return place, files.read_whole(place)
        except (FileNotFoundError, UsageError):
            continue  # UsageError: a store that hides what is missing behind "forbidden"
    return None


def _parse(text: bytes) -> list[Member]:
    """The members in the order of the tar."""
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError as error:
        raise _Contradiction("it is no text") from error
    version, _, count = (lines or [""])[0].partition(" ")
    if version != "v1.2":
        raise _Contradiction(f"its first line is {(lines or [''])[0]!r:.40}, expected v1.2 SAMPLES")
    if count.strip() != str(len(lines) - 1):
        raise _Contradiction(f"it says {count!r:.20} samples and has {len(lines) - 1}")
    members = []
    for number, line in enumerate(lines[1:], 2):
        words = line.split(" ")
        fields = zip(words[::4], words[1::4], words[2::4], words[3::4], strict=False)
        for suffix, offset, length, name in fields:
            member = Member(name)
            is_right = offset.isdecimal() and length.isdecimal() and name.endswith(suffix)
            if not is_right or len(words) % 4:
                raise _Contradiction(f"line {number}: expected SUFFIX OFFSET SIZE NAME")
            member.offset_data, member.size = int(offset), int(length)
            members.append(member)
    return members


def _checked(uri: str, size: int, listed: list[Member]) -> list[Member]:
    """All members of the tar: those listed, and those that the index file leaves out.

    Raises _Contradiction where it cannot be of this tar.
    """
    doubts: dict[int, tuple[int, int]] = {}  # by place in `listed`: what lies before it
    end = 0
    for place, member in enumerate(listed):
        gap = member.offset_data - end
        if gap < BLOCKSIZE or gap % BLOCKSIZE or member.offset_data + member.size > size:
            raise _Contradiction(
                f"{member.name} cannot lie at {member.offset_data} of {size} bytes"
            )
        if gap > _GAP_BYTES:
            raise _Contradiction(f"it leaves out {gap} bytes before {member.name}")
        edge = place in (0, len(listed) - 1)
        if gap > BLOCKSIZE or edge or "\\" in member.name:  # GNU tar writes é as \\303\\251
            doubts[place] = end, gap
        end = member.offset_data + -(-member.size // BLOCKSIZE) * BLOCKSIZE
    left = max(size - end, 0)
    *headers, tail = files.read_ranges(uri, [*doubts.values(), (end, min(left, _GAP_BYTES))])
    between = dict(zip(doubts, headers, strict=True))
    members: list[Member] = []
    for place, member in enumerate(listed):
        if place in between:
            members += _in_gap(doubts[place][0], between[place], member)
        else:
            members.append(member)
    return members + _behind(end, tail, left)


def _behind(start: int, tail: bytes, left: int) -> list[Member]:
    """The members behind the last listed one, in the bytes from `start` to the end of the tar."""
    if not tail.strip(b"\0"):
        return []
    found = list(walk(io.BytesIO(tail), left))
    members = [member for member in found if isinstance(member, Member)]
    if left > len(tail) or len(members) < len(found):
        raise _Contradiction(f"the tar goes on behind {start} bytes, the end of its last member")
    for member in members:
        member.offset_data += start
    return members


def _in_gap(start: int, header: bytes, listed: Member) -> list[Member]:
    """The members whose headers lie in the bytes from `start` to the data of a listed one."""
    members = []
    for member in walk(io.BytesIO(header), len(header)):
        if not isinstance(member, Member):
            raise _Contradiction(f"there is no header before {listed.name}")
        member.offset_data += start
        members.append(member)
    if not members or (members[-1].offset_data, members[-1].size) != (
        listed.offset_data,
        listed.size,
    ):
        raise _Contradiction(f"the header before {listed.name} is of another member")
    if members[-1].name != listed.name and "\\" not in listed.name:
        raise _Contradiction(f"{listed.name} is called {members[-1].name}")
    return members


def _labels(uri: str, members: tuple[Member, ...]) -> dict[int, bytes]:
    """The data of all members that say labels."""
    found = [label_member(item) for item in groups(members) if isinstance(item, Group)]
    wanted = [member for member in found if member is not None]
    ranges = [(member.offset_data, member.size) for member in wanted]
    data = files.read_ranges(uri, ranges)
    return {member.offset_data: text for member, text in zip(wanted, data, strict=True)}
