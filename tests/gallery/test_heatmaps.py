"""Legends of maps, and colours of classes."""

import math

import numpy as np

from zfscale.gallery.colours import CLASSES, MISSING, OTHER, rgb
from zfscale.gallery.heatmaps import ClassMap, map_range


def test_a_legend_spans_the_map_and_the_value_without_the_occluder() -> None:
    span = map_range(np.array([[0.5, 0.2, math.nan], [0.2, 0.7, 0.3]]), 0.9)
    assert (span.low, span.high, span.before) == (0.2, 0.9, 0.9)
    assert (span.least, span.at) == (0.2, (0, 1))  # the first of two
    assert span.place(0.2) == 0
    assert span.place(0.9) == 1
    assert math.isclose(span.place(0.55), 0.5)
    assert map_range(np.array([[1.0, 3.0]]), None).high == 3


def test_the_occluder_may_raise_a_value() -> None:
    span = map_range(np.array([[5.0, 9.0]]), 7.0)
    assert (span.low, span.high) == (5, 9)
    assert span.place(7.0) == 0.5


def test_a_map_without_values_or_contrast_has_a_legend() -> None:
    nothing = map_range(np.full((2, 2), math.nan), 3.0)
    assert (nothing.low, nothing.high, nothing.at) == (3, 3, None)
    assert math.isnan(nothing.least)
    assert map_range(np.full((2, 2), math.nan), None).high == 0
    assert map_range(np.full((2, 2), 4.0), 4.0).place(4.0) == 0.5


def test_values_are_told_apart() -> None:
    span = map_range(np.array([[0.9993, 0.9994]]), 0.9999)
    texts = [span.text(value) for value in (0.9993, 0.9994, 0.9999)]
    assert len(set(texts)) == 3
    assert map_range(np.array([[3.8, 21.5]]), 18.5).text(18.5) == "18.5"
    assert map_range(np.array([[0.0, 12345.0]]), 1.0).text(12345.0) == "12,345"


def test_the_followed_class_comes_first_then_the_frequent_ones() -> None:
    shown = ClassMap(np.array([[4, 7, 7], [7, 2, 2.0]]), 4, ["zero", "one", "two", "three", "four"])
    assert shown.order == [4, 7, 2]
    assert [(c.name, c.colour) for c in shown.legend] == [
        ("four", CLASSES[0]),
        ("class 7", CLASSES[1]),
        ("two", CLASSES[2]),
    ]
    assert [round(6 * c.share) for c in shown.legend] == [1, 3, 2]
    assert [c.target for c in shown.legend] == [True, False, False]
    pixels = shown.picture()
    for (row, column), label in np.ndenumerate(shown.values):
        assert tuple(pixels[row, column]) == rgb(CLASSES[shown.order.index(int(label))])


def test_a_followed_class_that_is_never_the_most_probable_is_in_the_legend() -> None:
    legend = ClassMap(np.array([[1.0, 1.0]]), 3, None).legend
    assert [(c.name, c.share) for c in legend] == [("class 3", 0), ("class 1", 1)]


def test_many_classes_share_the_last_colour() -> None:
    values = np.arange(12.0).reshape(3, 4)
    values[2, 3] = math.nan
    shown = ClassMap(values, None, None)
    assert [c.name for c in shown.legend][-2:] == ["class 8", "2 other classes"]
    assert shown.legend[-1].colour == OTHER
    pixels = shown.picture()
    assert tuple(pixels[2, 1]) == tuple(pixels[2, 2]) == rgb(OTHER)
    assert tuple(pixels[2, 3]) == rgb(MISSING)
    assert len({tuple(pixel) for pixel in pixels.reshape(-1, 3)[:9]}) == 9
