"""Statistics against the definitions, written out over all scores in memory."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfscale.convnet.observing.statistics import FeatureStatistics

FEATURES = 4


@pytest.fixture(params=[1, 20, 1 << 16])
def waiting(request: pytest.FixtureRequest) -> int:
    """Scores are counted at once, a few batches together, or all at the end."""
    number: int = request.param
    return number


@pytest.fixture
def scores() -> np.ndarray:
    rng = np.random.default_rng(0)
    scores = np.maximum(rng.normal(size=(60, FEATURES)), 0).astype(np.float32)
    scores[:, 3] = 0
    return scores


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(-1, 7, 60)


def _statistics(scores, labels, cuts, waiting=1 << 16) -> FeatureStatistics:
    merged = FeatureStatistics(FEATURES)
    for part, part_labels in zip(np.split(scores, cuts), np.split(labels, cuts), strict=True):
        part_of_it = FeatureStatistics(FEATURES, waiting)
        for at in range(0, len(part), 8):
            part_of_it.add(part[at : at + 8], part_labels[at : at + 8])
        merged.merge(part_of_it.rows())
    return merged


def test_summary_follows_the_definitions(scores, labels, waiting) -> None:
    summary = _statistics(scores, labels, [17, 40], waiting).summary()
    exact = scores.astype(np.float64)
    np.testing.assert_array_equal(summary["max"], scores.max(0))
    np.testing.assert_allclose(summary["mean"], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(summary["std"], exact.std(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(summary["fraction_active"], (scores > 0).mean(0))
    assert summary["dead"].tolist() == [False, False, False, True]
    for feature in range(FEATURES - 1):
        means = {c: exact[labels == c, feature].mean() for c in set(labels.tolist()) - {-1}}
        order = sorted(means, key=lambda c: (-means[c], c))
        rest = exact[(labels != order[0]) & (labels >= 0), feature].mean()
        index = (means[order[0]] - rest) / (means[order[0]] + rest)
        assert summary["selectivity"][feature] == pytest.approx(index, rel=1e-12)
        assert summary["top_class"][feature] == order[0]
        assert summary["top_classes"][feature].tolist() == order[:5]
    assert summary["selectivity"].mask.tolist() == [False, False, False, True]


def _exact_std(values: np.ndarray) -> float:
    """The standard deviation in whole numbers, rounded once at the end."""
    exact = [Fraction(float(value)) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    with localcontext() as context:
        context.prec = 400
        return float((Decimal(variance.numerator) / Decimal(variance.denominator)).sqrt())


def test_std_of_large_numbers_that_differ_in_their_last_bits(waiting) -> None:
    """Neighbours of 1,000 in float32 differ by 6e-5: their squares agree in eight digits."""
    neighbour = np.nextafter(np.float32(1000), np.float32(np.inf))
    scores = np.array([[1000, 1000, 5e8, 0]] * 5 + [[neighbour, 1000, 5e8, 0]] * 4, np.float32)
    scores[3, 2] = np.nextafter(scores[3, 2], np.float32(0))
    std = _statistics(scores, np.full(9, -1), [4], waiting).summary()["std"]
    assert std.tolist() == [_exact_std(column) for column in scores.T]
    assert std[1] == 0
    assert std[0] > 0


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_std_is_exact_for_any_numbers(values: list[float]) -> None:
    scores = np.array([values] * FEATURES, np.float32).T
    std = _statistics(scores, np.full(len(values), -1), []).summary()["std"]
    assert std.tolist() == [_exact_std(scores[:, 0])] * FEATURES


def test_any_cut_and_order_give_the_same_bits(scores, labels, waiting) -> None:
    expected = _statistics(scores, labels, []).summary()
    order = np.random.default_rng(2).permutation(60)
    for summary in (
        _statistics(scores, labels, [1, 2, 33], waiting).summary(),
        _statistics(scores[order], labels[order], [20], waiting).summary(),
    ):
        for name in ("max", "mean", "std", "fraction_active", "selectivity", "top_class"):
            np.testing.assert_array_equal(summary[name], expected[name], err_msg=name)


def test_without_labels_there_is_no_selectivity(scores, waiting) -> None:
    summary = _statistics(scores, np.full(60, -1), [], waiting).summary()
    assert summary["selectivity"].mask.all()
    assert summary["top_class"].mask.all()
    assert all(len(classes) == 0 for classes in summary["top_classes"])


def test_no_images_at_all() -> None:
    summary = FeatureStatistics(FEATURES).summary()
    assert summary["mean"].tolist() == [0, 0, 0, 0]
    assert summary["dead"].all()
