"""Statistics of features over images, exact under any split of the images into tasks.

The number that counts for an image is its maximum over the map of a feature, the same one
that competes for the top k. Knows numpy only.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfscale.convnet.observing.exactsum import ExactSum, split, standard_deviation
from zfscale.records import Columns

TOP_CLASSES = 5
UNLABELLED = -1
WAITING_SCORES = 1 << 16
"""Scores that may wait to be counted: as many as a processor's cache holds."""


class FeatureStatistics:
    """Sums over images for C features, without rounding: parts can be stored and merged.

    `waiting_scores` may wait to be counted together; their number changes no result.
    """

    def __init__(self, features: int, waiting_scores: int = WAITING_SCORES) -> None:
        self.features = features
        self._waiting_scores = waiting_scores
        self.images: defaultdict[int, int] = defaultdict(int)  # by label
        self.sums: defaultdict[int, ExactSum] = defaultdict(ExactSum)  # by label
        self.squares = ExactSum()
        self.active = np.zeros(features, np.int64)
        self.maximum = np.full(features, -np.inf, np.float32)
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def add(self, scores: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Count n images: `scores` (n, C) finite maxima, `labels` (n,) with -1 for unknown."""
        if len(scores):
            self._waiting.append((scores, labels))
        # Many images at once cost less than as many batches.
        if sum(len(labels) for _, labels in self._waiting) * self.features > self._waiting_scores:
            self._count()

    def _count(self) -> None:
        if not self._waiting:
            return
        scores, labels = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        order = np.argsort(labels, kind="stable")
        scores = scores[order]
        classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        for label, images in zip(classes.tolist(), counts.tolist(), strict=True):
            self.images[label] += images
        for bin_, piece in split(scores).items():
            by_label = np.add.reduceat(piece, starts, axis=0)
            for label, values in zip(classes.tolist(), by_label, strict=True):
                self.sums[label].add({bin_: values})
        squares = split(scores.astype(np.float64) ** 2)
        self.squares.add({bin_: piece.sum(0) for bin_, piece in squares.items()})
        self.active += (scores > 0).sum(0)
        self.maximum = np.maximum(self.maximum, scores.max(0))

    def rows(self) -> Columns:
        """The sums as a table: statistic, label, bin, values (C numbers; 1 for images)."""
        self._count()
        rows: list[tuple[str, int, int, NDArray[Any]]] = [
            ("active", UNLABELLED, 0, self.active.astype(np.float64)),
            ("maximum", UNLABELLED, 0, self.maximum.astype(np.float64)),
        ]
        rows += [("square", UNLABELLED, bin_, v) for bin_, v in sorted(self.squares.bins.items())]
        for label in sorted(self.images):
            rows.append(("images", label, 0, np.array([self.images[label]], np.float64)))
            rows += [("sum", label, bin_, v) for bin_, v in sorted(self.sums[label].bins.items())]
        values = np.empty(len(rows), dtype=object)
        values[:] = [row[3] for row in rows]
        return {
            "statistic": np.array([row[0] for row in rows], dtype=object),
            "label": np.array([row[1] for row in rows], np.int64),
            "bin": np.array([row[2] for row in rows], np.int64),
            "values": values,
        }

    def merge(self, rows: Columns) -> None:
        """Add the statistics that `rows` came from."""
        columns = zip(rows["statistic"], rows["label"], rows["bin"], rows["values"], strict=True)
        for statistic, label, bin_, values in columns:
            match statistic:
                case "active":
                    self.active += values.astype(np.int64)
                case "maximum":
                    self.maximum = np.maximum(self.maximum, values.astype(np.float32))
                case "images":
                    self.images[int(label)] += int(values[0])
                case "square":
                    self.squares.add({int(bin_): values})
                case "sum":
                    self.sums[int(label)].add({int(bin_): values})
                case _:
                    raise ValueError(f"unknown statistic {statistic!r} among the sums of features")

    def summary(self) -> dict[str, NDArray[Any]]:
        """Per feature: max, mean, std, fraction_active, dead, selectivity, top_class, top_classes.

        `std` is the population standard deviation, exact but for one rounding. `selectivity` is
        (m - r) / (m + r) with m the highest class mean and r the mean over the images of all other
        classes (Morcos et al., "On the importance of single directions for generalization", ICLR
        2018); masked where fewer than two classes are known or m + r is not positive.
        `top_classes` are the five classes of the highest means, `top_class` the first.
        """
        self._count()
        shape = (self.features,)
        count = sum(self.images.values())
        total = ExactSum()
        for label in self.sums:
            total.add(self.sums[label].bins)
        mean = total.value(shape) / max(count, 1)
        selectivity, top_classes = self._classes()
        top_class = np.array([best[0] if len(best) else 0 for best in top_classes], np.int64)
        unlabelled = np.array([not len(best) for best in top_classes], bool)
        return {
            "max": self.maximum,
            "mean": mean,
            "std": standard_deviation(total, self.squares, count, shape),
            "fraction_active": self.active / max(count, 1),
            "dead": self.active == 0,
            "selectivity": selectivity,
            "top_class": np.ma.masked_array(top_class, unlabelled),
            "top_classes": top_classes,
        }

    def _classes(self) -> tuple[NDArray[Any], NDArray[Any]]:
        labels = np.array(sorted(label for label in self.images if label >= 0), np.int64)
        top_classes = np.empty(self.features, dtype=object)
        if not len(labels):
            top_classes[:] = [np.empty(0, np.int64)] * self.features
            return np.ma.masked_all(self.features, np.float64), top_classes
        sums = np.stack([self.sums[int(label)].value((self.features,)) for label in labels])
        images = np.array([self.images[int(label)] for label in labels], np.float64)[:, None]
        means = sums / images
        order = np.argsort(-means, axis=0, kind="stable")[:TOP_CLASSES]
        top_classes[:] = list(labels[order].T)
        best = order[0]
        highest = means[best, np.arange(self.features)]
        others = images.sum() - images[best, 0]
        rest = (sums.sum(0) - sums[best, np.arange(self.features)]) / np.maximum(others, 1)
        is_defined = (others > 0) & (highest + rest > 0) & (rest >= 0)
        selectivity = (highest - rest) / np.where(is_defined, highest + rest, 1)
        return np.ma.masked_array(selectivity, ~is_defined), top_classes
