"""Exact sums against arbitrary-precision arithmetic, under any order and grouping."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zfscale.convnet.observing.exactsum import BITS, ExactSum, split

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(numbers, min_size=1, max_size=30))
def test_pieces_add_up_to_the_number_exactly(values: list[float]) -> None:
    array = np.array(values, np.float32)
    pieces = split(array)
    for at, value in enumerate(array):
        assert sum(Fraction(piece[at]) for piece in pieces.values()) == Fraction(float(value))
    for bin_, piece in pieces.items():
        unit = Fraction(2) ** (BITS * bin_)
        assert all((Fraction(element) / unit).denominator == 1 for element in piece)


@given(st.lists(numbers, min_size=1, max_size=30), st.randoms())
def test_order_and_grouping_do_not_change_a_bit(values: list[float], random) -> None:
    array = np.array(values, np.float32).reshape(-1, 1)
    one_by_one, shuffled, halves = ExactSum(), ExactSum(), [ExactSum(), ExactSum()]
    for value in array:
        one_by_one.add(split(value))
    order = list(range(len(array)))
    random.shuffle(order)
    for at in order:
        shuffled.add(split(array[at]))
        halves[at % 2].add(split(array[at]))
    merged = ExactSum()
    for half in halves:
        merged.add(half.bins)
    batch = ExactSum()
    batch.add({bin_: piece.sum(0) for bin_, piece in split(array).items()})
    exact = sum(Fraction(float(value)) for value in array[:, 0])
    for total in (one_by_one, shuffled, merged, batch):
        assert sum(Fraction(float(piece[0])) for piece in total.bins.values()) == exact
        np.testing.assert_array_equal(total.value((1,)), one_by_one.value((1,)))


def test_small_numbers_survive_big_ones_that_cancel() -> None:
    values = np.array([1e20, 1.0, -1e20, 3.0], np.float32).reshape(-1, 1)
    total = ExactSum()
    for value in values:
        total.add(split(value))
    assert total.value((1,))[0] == 4.0
    assert np.cumsum(values.astype(np.float64))[-1] == 3.0  # what plain float64 makes of it


def test_squares_of_float32_stay_exact() -> None:
    values = np.array([[3.1415927], [1e-20], [2.7182817e10]], np.float32)
    total = ExactSum()
    total.add({b: p.sum(0) for b, p in split(values.astype(np.float64) ** 2).items()})
    exact = sum(Fraction(float(value)) ** 2 for value in values[:, 0])
    assert sum(Fraction(float(piece[0])) for piece in total.bins.values()) == exact


def test_nothing_added_is_zero() -> None:
    assert ExactSum().value((2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
