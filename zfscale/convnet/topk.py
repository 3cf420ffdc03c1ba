"""The k strongest images of every feature, merged exactly.

Per feature the winners are the first k under the total order (-score, image id); an image
takes one place at most. Merging is commutative, associative and idempotent, so retries,
duplicates, the number of workers and their order cannot change the result.
Knows numpy and torch; image ids are 128 bits, held as two uint64 (high, low).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Identity:
    """Who n images are: halves of the 128-bit id (uint64) and label or -1 (int64), each (n,)."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    label: NDArray[np.int64]

    @staticmethod
    def of(ids: Sequence[str], labels: Sequence[int | None]) -> Identity:
        """From ids of 32 hex digits and labels that may be None."""
        return Identity(
            np.array([int(id_[:16], 16) for id_ in ids], np.uint64),
            np.array([int(id_[16:], 16) for id_ in ids], np.uint64),
            np.array([-1 if label is None else label for label in labels], np.int64),
        )

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Winners:
    """Candidates of C features, best first: every array has shape (C, m).

    A place that is not taken has score -inf. `score` is float32, `high` and `low` are the
    halves of the image id (uint64), `y` and `x` the position of the maximum in the layer,
    `label` the class of the image or -1 (int64).
    """

    score: NDArray[np.float32]
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    label: NDArray[np.int64]

    @staticmethod
    def empty(features: int, places: int = 0) -> Winners:
        """Places that nobody has taken."""
        shape = (features, places)
        return Winners(
            np.full(shape, -np.inf, np.float32),
            np.zeros(shape, np.uint64),
            np.zeros(shape, np.uint64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.full(shape, -1, np.int64),
        )

    @staticmethod
    def scatter(features: int, feature: NDArray[np.int64], **columns: NDArray[Any]) -> Winners:
        """From n entries in rows: `feature` (n,) says whose each is, `columns` are the fields."""
        order = np.argsort(feature, kind="stable")
        row = feature[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        winners = Winners.empty(features, int(place.max(initial=-1)) + 1)
        for name, values in columns.items():
            getattr(winners, name)[row, place] = values[order]
        return winners

    def rows(self) -> dict[str, NDArray[Any]]:
        """The taken places as columns: feature, rank, then the fields; ordered by both."""
        feature, rank = np.nonzero(self.score > -np.inf)
        columns = {field.name: getattr(self, field.name)[feature, rank] for field in fields(self)}
        return {"feature": feature, "rank": rank, **columns}


def merge(parts: Sequence[Winners], k: int) -> Winners:
    """The k best candidates per feature of all parts, one per image, in the total order."""
    stacked = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts], axis=1)
        for field in fields(Winners)
    }
    stacked = _sort(stacked)
    # An image may appear twice (a retry, a task seen before): equal entries are neighbours
    # now, and all but the first lose their place.
    same = (stacked["high"][:, 1:] == stacked["high"][:, :-1]) & (
        stacked["low"][:, 1:] == stacked["low"][:, :-1]
    )
    same &= stacked["score"][:, 1:] > -np.inf
    if same.any():
        stacked["score"][:, 1:][same] = -np.inf
        stacked = _sort(stacked)
    return Winners(**{name: array[:, :k] for name, array in stacked.items()})


def update(best: Winners, found: Winners, k: int) -> Winners:
    """`merge([best, found], k)` at the cost of the features for which something was found.

    In the middle of a scan these are few.
    """
    if best.score.shape[1] < k:
        return merge([best, found], k)
    rows = np.flatnonzero((found.score > -np.inf).any(1))
    merged = merge([_take(best, rows), _take(found, rows)], k)
    columns = {}
    for field in fields(Winners):
        columns[field.name] = getattr(best, field.name).copy()
        columns[field.name][rows] = getattr(merged, field.name)
    return Winners(**columns)


def _take(winners: Winners, rows: NDArray[np.intp]) -> Winners:
    return Winners(**{field.name: getattr(winners, field.name)[rows] for field in fields(Winners)})


def _sort(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    # The label breaks the tie between two copies of one image that carry different labels.
    keys = (columns["label"], columns["low"], columns["high"], -columns["score"])
    order = np.lexsort(keys, axis=1)
    return {name: np.take_along_axis(array, order, axis=1) for name, array in columns.items()}


def candidates(scores: NDArray[np.float32], best: Winners, k: int) -> NDArray[np.bool_]:
    """Which images of a batch may enter the k best so far; shape (n, C) like `scores`.

    An image that ties with the k-th best may win by its id, so ties are let through.
    Scores of -inf never enter.
    """
    mask = scores > -np.inf
    if best.score.shape[1] >= k:
        mask &= scores >= best.score[:, k - 1]
    if len(scores) > k:
        mask &= scores >= np.partition(scores, len(scores) - k, axis=0)[len(scores) - k]
    return mask


def row_maxima(activations: torch.Tensor) -> torch.Tensor:
    """The maximum of every row of every map: (B, C, H) for `activations` (B, C, H, W)."""
    # As (B, H, W, C), the order in memory: torch reduces (B, C, H, W) nine times more slowly.
    return activations.permute(0, 2, 3, 1).amax(2).transpose(1, 2)


def positions(
    activations: torch.Tensor,
    rows: torch.Tensor,
    image: NDArray[np.int64],
    feature: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the maximum lies for n pairs (image, feature): y and x, ties to the smallest (y, x).

    `rows` are the `row_maxima` of `activations`: with them only one row of a map is searched.
    """
    index, channel = (torch.from_numpy(v).to(activations.device) for v in (image, feature))
    # Of equal maxima, torch.max gives the first.
    y = rows[index, channel].max(1).indices
    x = activations[index, channel, y].max(1).indices
    return y.cpu().numpy(), x.cpu().numpy()
