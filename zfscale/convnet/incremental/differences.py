"""What an operation makes of a change of its input, computed where something changes only.

A convolution, a sum, an average pool and a fully connected layer are linear: they carry the
change itself, whatever the map. A rectification, a normalisation and a max pool need the map
too: they are computed with the change and without it. Maps here are (H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.incremental.spans import Change, Spans, locate, same, select, taps, windows


def pick(values: torch.Tensor, rows: Spans, columns: Spans) -> torch.Tensor:
    """A map (H, W, C) as it is on some spans: (U, V, C)."""
    return select(values, rows.place, columns.place)


def spread(change: Change, rows: Spans, columns: Spans) -> torch.Tensor:
    """A change on larger spans: zero where there is none."""
    if same(change.rows, rows) and same(change.columns, columns):
        return change.values
    found = change.values.new_zeros(rows.length, columns.length, change.values.shape[2])
    _place(found, change, rows, columns)
    return found


def _place(found: torch.Tensor, change: Change, rows: Spans, columns: Spans) -> None:
    """Add a change to values (U, V, C) on other spans; what lies outside of these is left out."""
    y, x = locate(change.rows, rows), locate(change.columns, columns)
    values = change.values
    if len(y) and int(y.min()) < 0:
        values, y = values[y >= 0], y[y >= 0]
    if len(x) and int(x.min()) < 0:
        values, x = values[:, x >= 0], x[x >= 0]
    index = (y[:, None] * columns.length + x).flatten()
    channels = found.shape[2]
    found.view(-1, channels).index_add_(0, index, values.reshape(-1, channels))


def pointwise(
    change: Change,
    before: torch.Tensor,
    after: torch.Tensor | None,
    function: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The change of what `function` makes of each position of a map.

    `function` takes maps (B, C, H, W), and may work in place. `after` is what it makes of the map
    without a change: None where computing that again takes less time than fetching it.
    """
    without = pick(before, change.rows, change.columns)
    found = _apply(function, without + change.values)
    known = _apply(function, without) if after is None else pick(after, change.rows, change.columns)
    return found.sub_(known)


def _apply(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """A function of maps (B, C, H, W) on values (U, V, C): one map, channels last."""
    maps = function(values.flatten(0, 1).t()[None, :, :, None])
    return maps[0, :, :, 0].t().reshape(values.shape)


def max_pool(
    change: Change,
    before: torch.Tensor,
    after: torch.Tensor,
    window: ops.Sliding,
    rectified: bool,
    rows: Spans,
    columns: Spans,
) -> torch.Tensor:
    """The change of a max pool, `rectified` or not, given its input and output without it."""
    height, width, _ = before.shape
    seen_rows = windows(rows, window, 0, height)
    seen_columns = windows(columns, window, 1, width)
    canvas = pick(before, seen_rows, seen_columns)
    _place(canvas, change, seen_rows, seen_columns)
    down = _largest(canvas, 0, taps(seen_rows, rows, window, 0))
    both = _largest(down, 1, taps(seen_columns, columns, window, 1))
    if rectified:
        both.clamp_min_(0)
    return both.sub_(pick(after, rows, columns))


def _largest(values: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """The maximum along an axis over the elements in each row of `index`."""
    index = torch.where(index < 0, index.amax(1, keepdim=True), index)
    found = values.index_select(axis, index[:, 0])
    for tap in index.t()[1:]:
        torch.maximum(found, values.index_select(axis, tap), out=found)
    return found


def average_pool(
    change: Change, pool: ops.AveragePool, rows: Spans, columns: Spans
) -> torch.Tensor:
    """The change of an average pool: averages down the columns of the map, then along its rows."""
    height, width, channels = change.values.shape
    index, shares = _averages(pool.rows, change.rows, rows)
    down = _weighted_sums(change.values.reshape(height, width * channels), index, shares)
    index, shares = _averages(pool.columns, change.columns, columns)
    starts = torch.arange(rows.length, device=index.device)[:, None, None] * width
    index, shares = (starts + index).flatten(0, 1), shares.repeat(rows.length, 1)
    both = _weighted_sums(down.view(-1, channels), index, shares)
    return both.view(rows.length, columns.length, channels)


def _averages(
    matrix: torch.Tensor, below: Spans, above: Spans
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which elements of `below` an average pool along one axis adds up, and their shares.

    Both are (U_above, n), by the pool's `matrix` (out, in). What is absent has no share.
    """
    used = matrix != 0
    reach = torch.arange(int(used.sum(1).max()), device=matrix.device)
    place = used.int().argmax(1)[above.place, None] + reach
    index = below.find(above.owner[:, None], place)
    shares = matrix[above.place[:, None], place.clamp(max=matrix.shape[1] - 1)]
    return index.clamp(min=0), shares.where(index >= 0, 0)


def _weighted_sums(
    values: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sums of rows of `values` (A, N) by index and weight (B, n): (B, N)."""
    return functional.embedding_bag(index, values, mode="sum", per_sample_weights=weights)


def flatten(change: Change, rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
    """The change of a part of the map for each position: (T_y * T_x, h, w, C).

    The part is `rows` and `columns`, [start, stop), and holds all that changes.
    """
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    count = change.rows.count, change.columns.count
    y = change.rows.owner * (count[1] * height * width) + (change.rows.place - rows[0]) * width
    x = change.columns.owner * (height * width) + change.columns.place - columns[0]
    channels = change.values.shape[2]
    found = change.values.new_zeros(count[0] * count[1], height, width, channels)
    index = (y[:, None] + x).flatten()
    found.view(-1, channels).index_add_(0, index, change.values.reshape(-1, channels))
    return found


def linear(change: Change, weight: torch.Tensor) -> torch.Tensor:
    """The change of a fully connected layer, (T_y, T_x, N): `weight` is (H, W, C, N).

    Row by row of the map, the positions that change something there meet the part of the weights
    where they do.
    """
    (top, bottom), (left, right) = change.rows.hull, change.columns.hull
    down, across = change.rows.count, change.columns.count
    found = change.values.new_zeros(down, across, weight.shape[3])
    given = flatten(change, (top, bottom), (left, right))
    given = given.view(down, across, bottom - top, (right - left) * weight.shape[2])
    for row in range(top, bottom):
        met = ((change.rows.start <= row) & (row < change.rows.stop)).nonzero()[:, 0]
        if not len(met):
            continue
        some = slice(int(met[0]), int(met[-1]) + 1)
        inputs = given[some, :, row - top].flatten(0, 1)
        found[some].flatten(0, 1).addmm_(inputs, weight[row, left:right].flatten(0, 1))
    return found


def add(changes: Sequence[Change], rows: Spans, columns: Spans) -> torch.Tensor:
    """The change of a sum."""
    total = spread(changes[0], rows, columns)
    for change in changes[1:]:
        total = total + spread(change, rows, columns)
    return total


def concatenate(changes: Sequence[Change], rows: Spans, columns: Spans) -> torch.Tensor:
    """The change of maps that lie side by side along the channels."""
    return torch.cat([spread(change, rows, columns) for change in changes], 2)
