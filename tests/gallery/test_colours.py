"""Colours of figures: told apart by eye, as far as numbers can say."""

import itertools

import numpy as np
import pytest

from zfscale.gallery.colours import CLASSES, MISSING, OTHER, SCALE, on_scale, rgb


def lab(colour: tuple[int, int, int]) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour, from the definition (IEC 61966-2-1, D65)."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(matrix) @ linear / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_scale_runs_through_its_anchors() -> None:
    values = np.linspace(-3, 6, len(SCALE))
    assert [tuple(pixel) for pixel in on_scale(values, -3, 6)] == [rgb(colour) for colour in SCALE]
    between = on_scale(np.array([[-2.5]]), -3, 6)[0, 0]  # half way to the second anchor
    np.testing.assert_allclose(between, np.mean([rgb(SCALE[0]), rgb(SCALE[1])], axis=0), atol=0.51)


def test_the_scale_gets_lighter_step_by_step() -> None:
    shown = on_scale(np.linspace(0, 1, 21), 0, 1)
    lightness = np.array([lab(tuple(pixel))[0] for pixel in shown])
    steps = np.diff(lightness)
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.mean()
    assert shown[0].argmax() == 2  # low is blue
    assert shown[-1].argmin() == 2  # high is yellow


def test_the_scale_beyond_the_ends_and_where_nothing_is_known() -> None:
    shown = on_scale(np.array([-9.0, 0.0, 1.0, 9.0, np.nan]), 0, 1)
    np.testing.assert_array_equal(shown[0], shown[1])
    np.testing.assert_array_equal(shown[2], shown[3])
    assert tuple(shown[4]) == rgb(MISSING)


def test_the_scale_of_a_constant_is_one_colour() -> None:
    shown = on_scale(np.array([2.0, 2.0, np.nan]), 2, 2)
    np.testing.assert_array_equal(shown[0], shown[1])
    assert tuple(shown[2]) == rgb(MISSING)
    assert tuple(shown[0]) != rgb(MISSING)


@pytest.mark.parametrize("paper", ["#fbfbf9", "#131416"])
def test_classes_are_told_apart(paper: str) -> None:
    colours = [lab(rgb(colour)) for colour in (*CLASSES, OTHER)]
    assert len(set(CLASSES)) == 9
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2))
    assert nearest > 20
    assert min(np.linalg.norm(colour - lab(rgb(paper))) for colour in colours) > 30
