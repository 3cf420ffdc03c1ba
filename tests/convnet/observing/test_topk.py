"""Top-k against a full sort under the same order, and the algebra of merging."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from zfscale.convnet.observing.topk import (
    ImageIds,
    TopK,
    Winners,
    candidates,
    merge,
    positions,
    row_maxima,
    update_thresholds,
)

FEATURES = 3


def _rows(entries: list[tuple[int, float, int, int]]) -> dict[str, np.ndarray]:
    """Entries (feature, score, image, label); an image scores what its number says."""
    return {
        "feature": np.array([e[0] for e in entries], np.int64),
        "score": np.array([e[1] for e in entries], np.float32),
        "high": np.array([e[2] // 8 for e in entries], np.uint64),
        "low": np.array([e[2] % 8 for e in entries], np.uint64),
        "y": np.zeros(len(entries), np.int64),
        "x": np.zeros(len(entries), np.int64),
        "label": np.array([e[3] for e in entries], np.int64),
    }


def _winners(entries: list[tuple[int, float, int, int]]) -> Winners:
    return Winners.of(FEATURES, _rows(entries))


def _table(winners: Winners) -> list[tuple]:
    rows = winners.rows()
    names = ("feature", "rank", "score", "high", "low", "label")
    return list(zip(*(rows[name].tolist() for name in names), strict=True))


def _full_sort(entries: list[tuple[int, float, int, int]], k: int) -> list[tuple]:
    """The definition: all entries in memory, sorted, one place per image."""
    rows = []
    for feature in range(FEATURES):
        best: dict[int, tuple] = {}
        for entry in entries:
            if entry[0] == feature:
                best.setdefault(entry[2], entry)
        order = sorted(best.values(), key=lambda e: (-e[1], e[2]))[:k]
        rows += [(feature, r, e[1], e[2] // 8, e[2] % 8, e[3]) for r, e in enumerate(order)]
    return rows


def _score(feature: int, image: int) -> float:
    return float((image * 7 + feature * 3) % 5)  # many ties


entries = st.lists(st.tuples(st.integers(0, FEATURES - 1), st.integers(0, 15)), max_size=40).map(
    lambda pairs: [(f, _score(f, i), i, i % 3) for f, i in pairs]
)


@given(entries, st.integers(1, 5))
def test_merge_equals_a_full_sort(rows, k) -> None:
    assert _table(merge([_winners(rows)], k)) == _full_sort(rows, k)


@given(entries, entries, entries, st.integers(1, 5))
def test_merge_is_commutative_associative_idempotent(a, b, c, k) -> None:
    a, b, c = (_winners(rows) for rows in (a, b, c))
    whole = _table(merge([a, b, c], k))
    assert _table(merge([c, b, a], k)) == whole
    assert _table(merge([merge([a, b], k), c], k)) == whole
    assert _table(merge([a, merge([b, c], k)], k)) == whole
    assert _table(merge([merge([a, b], k), a, c, b], k)) == whole


@given(st.integers(0, 2**32), st.integers(1, 4), st.lists(st.integers(0, 12), max_size=8))
def test_top_k_of_many_batches_equal_a_full_sort(seed, k, sizes) -> None:
    rng = np.random.default_rng(seed)
    top_k = TopK(FEATURES, k)
    every = []
    for size in sizes:
        scores = rng.integers(0, 4, (size, FEATURES)).astype(np.float32)  # many ties
        scores[rng.random(scores.shape) < 0.1] = -np.inf
        # Numbers that no earlier image has, in any order: a tie goes to the smaller.
        images = rng.permutation(size) + 1000 * rng.permutation(100)[0] + 100_000 * len(every)
        new = [
            (f, float(scores[i, f]), int(images[i]), 0)
            for i in range(size)
            for f in range(FEATURES)
            if np.isfinite(scores[i, f])
        ]
        thresholds = update_thresholds(top_k.thresholds, scores)
        mask = candidates(scores, thresholds)
        assert not mask[np.isinf(scores)].any()
        row = {int(image): i for i, image in enumerate(images)}
        top_k.add(thresholds, _rows([entry for entry in new if mask[row[entry[2]], entry[0]]]))
        every += new
    assert _table(top_k.winners()) == _full_sort(every, k)


def test_images_below_the_thresholds_are_no_candidates() -> None:
    thresholds = update_thresholds(
        np.full((2, 1), -np.inf, np.float32), np.array([[3], [5], [4]], np.float32)
    )
    assert sorted(thresholds[:, 0]) == [4, 5]
    found = candidates(np.array([[3.9], [4], [6]], np.float32), thresholds)
    assert found[:, 0].tolist() == [False, True, True]


def test_features_are_numbered_from_zero_in_a_part() -> None:
    rows = [(f, float(10 * f + i), i, 0) for f in range(FEATURES) for i in range(2)]
    part = _table(_winners(rows).part(1, 3))
    assert part == _table(Winners.of(2, _rows([(f - 1, s, i, n) for f, s, i, n in rows if f])))


def test_positions_are_the_first_maximum_in_reading_order() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 3, (4, 5, 6, 7), generator=generator).float()
    image, feature = (part.ravel() for part in np.mgrid[0:4, 0:5])
    for layout in (torch.contiguous_format, torch.channels_last):
        activations = maps.to(memory_format=layout)
        y, x = positions(activations, row_maxima(activations), image, feature)
        for at in range(len(image)):
            plane = maps[image[at], feature[at]].numpy()
            expected = next(
                (r, c) for r in range(6) for c in range(7) if plane[r, c] == plane.max()
            )
            assert (y[at], x[at]) == expected


def test_image_ids_split_an_id_into_two_halves() -> None:
    who = ImageIds.of(["00000000000000ff" + "f" * 16, "8" + "0" * 31], [3, None])
    assert who.high.tolist() == [255, 2**63]
    assert who.low.tolist() == [2**64 - 1, 0]
    assert who.label.tolist() == [3, -1]
