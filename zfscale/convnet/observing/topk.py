"""The k strongest images of every feature, merged exactly.

Per feature the winners are the first k under the total order (-score, image id); an image
is among them at most once. Merging is commutative, associative and idempotent, so retries,
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

from zfscale.records import Columns

WAITING = 4, 1 << 20
"""Candidates that may wait to be merged: for each place among the k best, and in all."""


@dataclass(frozen=True)
class ImageIds:
    """Ids and labels of n images: the halves `high` and `low` of the 128-bit ids (uint64), and
    `label`, the class or -1 (int64); each (n,).
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    label: NDArray[np.int64]

    @staticmethod
    def of(ids: Sequence[str], labels: Sequence[int | None]) -> ImageIds:
        """From ids of 32 hex digits and labels that may be None."""
        return ImageIds(
            np.array([int(id_[:16], 16) for id_ in ids], np.uint64),
            np.array([int(id_[16:], 16) for id_ in ids], np.uint64),
            np.array([-1 if label is None else label for label in labels], np.int64),
        )

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Winners:
    """Candidates for the top k of C features, in arrays of shape (C, m); after merging, best first.

    A place without an image has score -inf. `score` is float32, `high` and `low` are the
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
        """`places` places of each feature, without images."""
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
    def of(features: int, rows: Columns) -> Winners:
        """From a table of candidates in any order, with the columns `feature` and the fields."""
        order = np.argsort(rows["feature"], kind="stable")
        row = np.asarray(rows["feature"])[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        winners = Winners.empty(features, int(place.max(initial=-1)) + 1)
        for field in fields(Winners):
            getattr(winners, field.name)[row, place] = np.asarray(rows[field.name])[order]
        return winners

    def part(self, start: int, stop: int) -> Winners:
        """Those of the features from `start` to before `stop`, numbered from 0."""
        return Winners(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    def rows(self) -> dict[str, NDArray[Any]]:
        """As a table with the columns feature, rank and the fields, sorted by feature and rank."""
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
    # An image may appear twice (a task that was tried again): equal entries are neighbours now, and
    # all but the first are emptied.
    repeated = (stacked["high"][:, 1:] == stacked["high"][:, :-1]) & (
        stacked["low"][:, 1:] == stacked["low"][:, :-1]
    )
    repeated &= stacked["score"][:, 1:] > -np.inf
    if repeated.any():
        stacked["score"][:, 1:][repeated] = -np.inf
        stacked = _sort(stacked)
    return Winners(**{name: array[:, :k] for name, array in stacked.items()})


def _sort(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    # The label breaks the tie between two copies of one image that carry different labels.
    keys = (columns["label"], columns["low"], columns["high"], -columns["score"])
    order = np.lexsort(keys, axis=1)
    return {name: np.take_along_axis(array, order, axis=1) for name, array in columns.items()}


class TopK:
    """The k strongest images of each of C features, while batches come in; each image comes once.

    Sorting is put off until many candidates have come. Meanwhile `thresholds` (k, C), the k best
    scores of every feature in no order, tells which images can still enter: for each batch they
    are updated by `update_thresholds`, and `candidates` compares with them.
    """

    def __init__(self, features: int, k: int) -> None:
        self.thresholds = np.full((k, features), -np.inf, np.float32)
        self._best = Winners.empty(features)
        self._waiting: list[Columns] = []

    def add(self, thresholds: NDArray[np.float32], candidates: Columns) -> None:
        """Add one batch: the thresholds after it, and its candidates, a row each, with the columns
        of `Winners` and `feature`.
        """
        self.thresholds = thresholds
        self._waiting.append(candidates)
        for_each_place, at_most = WAITING
        limit = min(for_each_place * thresholds.size, at_most)
        if sum(len(rows["feature"]) for rows in self._waiting) > limit:
            self._merge()

    def winners(self) -> Winners:
        """The k best of all batches so far."""
        self._merge()
        return self._best

    def _merge(self) -> None:
        if self._waiting:
            names = self._waiting[0]
            rows = {name: np.concatenate([part[name] for part in self._waiting]) for name in names}
            k, features = self.thresholds.shape
            # Thresholds have risen since most of the candidates came in: few are left to sort.
            above = rows["score"] >= self.thresholds.min(0)[rows["feature"]]
            first = _first({name: values[above] for name, values in rows.items()}, k)
            self._best = merge([self._best, Winners.of(features, first)], k)
            self._waiting = []


def _first(rows: Columns, k: int) -> Columns:
    """Of entries in rows, the first k of every feature in the total order."""
    keys = (rows["label"], rows["low"], rows["high"], -rows["score"], rows["feature"])
    order = np.lexsort(keys)
    feature = rows["feature"][order]
    rank = np.arange(len(feature)) - np.searchsorted(feature, feature)
    return {name: values[order[rank < k]] for name, values in rows.items()}


def update_thresholds(
    thresholds: NDArray[np.float32], scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The k best of `thresholds` (k, C) and `scores` (n, C) for every feature, in no order."""
    every = np.concatenate([thresholds, scores])
    return np.partition(every, len(scores), axis=0)[len(scores) :]


def candidates(scores: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of `scores` (n, C) may be among the k best, whose scores `thresholds` (k, C) holds.

    An image that ties with the k-th best may win by its id, so ties are let through.
    Scores of -inf never enter.
    """
    mask: NDArray[np.bool_] = (scores > -np.inf) & (scores >= thresholds.min(0))
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
