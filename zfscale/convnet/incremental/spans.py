"""What several occluders change along one axis of a map: one span for each, stored end to end.

Occluders on a grid change boxes that are products of a span of rows and a span of columns. So a
block of T_y x T_x positions changes, of any map, (U rows) x (V columns) where U and V are the
lengths of all spans stored end to end: dense, though every box has its own true size, also at the
borders. All indices along an axis are computed once for it, not once for each box.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.geometry import Mask

ABSENT = -(1 << 40)
"""An index into what is not there: negative, also when a valid index is added."""


@dataclass(frozen=True, eq=False)
class Spans:
    """One span [start, stop) of an axis for each of T positions; both have shape (T,)."""

    start: torch.Tensor
    stop: torch.Tensor

    @classmethod
    def of(cls, mask: Mask, device: torch.device) -> Spans:
        """The smallest span that holds each row of a mask (T, size); empty where it is empty."""
        reached = torch.from_numpy(mask)
        start = reached.int().argmax(1)
        last = mask.shape[1] - reached.flip(1).int().argmax(1)
        return cls(start.to(device), torch.where(reached.any(1), last, start).to(device))

    @classmethod
    def whole(cls, count: int, size: int, device: torch.device) -> Spans:
        """The whole axis for each position."""
        start = torch.zeros(count, dtype=torch.int64, device=device)
        return cls(start, start + size)

    @property
    def count(self) -> int:
        """T, the number of positions."""
        return len(self.start)

    @cached_property
    def offset(self) -> torch.Tensor:
        """Where the span of each position begins in the whole, and the length of it: (T + 1,)."""
        ends = (self.stop - self.start).cumsum(0)
        return torch.cat([ends.new_zeros(1), ends])

    @cached_property
    def owner(self) -> torch.Tensor:
        """To which position each element belongs: (U,)."""
        numbers = torch.arange(self.count, device=self.start.device)
        return numbers.repeat_interleave(self.stop - self.start)

    @cached_property
    def place(self) -> torch.Tensor:
        """Where on the axis each element lies: (U,)."""
        owner = self.owner
        return (
            torch.arange(len(owner), device=owner.device) - (self.offset[:-1] - self.start)[owner]
        )

    @property
    def length(self) -> int:
        """U, the length of all spans together."""
        return len(self.owner)

    @cached_property
    def hull(self) -> tuple[int, int]:
        """The smallest span that holds all that are not empty; (0, 0) where all are."""
        some = self.stop > self.start
        if not bool(some.any()):
            return 0, 0
        return int(self.start[some].min()), int(self.stop[some].max())

    def find(self, owner: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The element of `owner` at `place`; ABSENT where its span does not hold it."""
        start = self.start[owner]
        inside = (place >= start) & (place < self.stop[owner])
        return torch.where(inside, self.offset[owner] + place - start, ABSENT)


def part(spans: Spans, begin: int, end: int) -> Spans:
    """The spans of positions `begin` to `end`."""
    return Spans(spans.start[begin:end], spans.stop[begin:end])


def same(one: Spans, other: Spans) -> bool:
    """Whether two are equal."""
    return one is other or (
        torch.equal(one.start, other.start) and torch.equal(one.stop, other.stop)
    )


def locate(elements: Spans, within: Spans) -> torch.Tensor:
    """Where each element of one is found in the other: (U,), or ABSENT."""
    return within.find(elements.owner, elements.place)


def taps(below: Spans, above: Spans, window: ops.Sliding, axis: int) -> torch.Tensor:
    """Where the window of each element of `above` finds its inputs: (U_above, kernel)."""
    step = torch.arange(window.kernel[axis], device=above.start.device) * window.dilation[axis]
    first = above.place * window.stride[axis] - window.padding[axis]
    return below.find(above.owner[:, None], first[:, None] + step)


def phase(
    below: Spans, above: Spans, window: ops.Sliding, axis: int, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs that the taps of one phase of a strided window are multiplied with.

    Taps whose offset is `number` modulo the stride meet only inputs at such a distance from where
    windows begin. Returns these elements of `below`, (n,), and for each element of `above` where
    among them its inputs are, (U_above, taps of the phase), or ABSENT.
    """
    members = (below.place + window.padding[axis]) % window.stride[axis] == number
    chosen = members.nonzero()[:, 0]
    rank = members.cumsum(0) - 1
    inputs = taps(below, above, window, axis)[:, phase_taps(window, axis, number)]
    return chosen, torch.where(inputs >= 0, rank[inputs.clamp(min=0)], ABSENT)


def phase_taps(window: ops.Sliding, axis: int, number: int) -> list[int]:
    """The taps of a window that belong to a phase (see `phase`)."""
    stride, dilation = window.stride[axis], window.dilation[axis]
    return [tap for tap in range(window.kernel[axis]) if tap * dilation % stride == number]


def windows(above: Spans, window: ops.Sliding, axis: int, size: int) -> Spans:
    """The span of inputs, on an axis of `size`, that the span of each position of `above` sees."""
    stride, padding = window.stride[axis], window.padding[axis]
    start = (above.start * stride - padding).clamp(0, size)
    stop = ((above.stop - 1) * stride - padding + window.span[axis]).clamp(0, size)
    return Spans(start, torch.where(above.stop > above.start, stop, start))


def product(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """All sums of an index of `rows` (A, k) and one of `columns` (B, l): (A * B, k * l).

    They are negative where one of the two is ABSENT.
    """
    return (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """How a block of T_y x T_x positions changes a map: `values` (U, V, C) on spans of length U
    along the rows and V along the columns.
    """

    values: torch.Tensor
    rows: Spans
    columns: Spans


def select(values: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """All pairs of some rows and some columns of values (U, V, C)."""
    width, channels = values.shape[1:]
    index = (y[:, None] * width + x).flatten()
    return values.reshape(-1, channels).index_select(0, index).view(len(y), len(x), channels)
