"""The canvas: frames against a literal rotation, boxes against a pixel count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from zfscale.datasets.canvas import Canvas, Frame, ellipse, stroke


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2, math.pi / 2])
def test_a_frame_turns_scales_and_moves(angle: float):
    frame = Frame((10.0, 20.0), 3.0, angle)
    x, y = 2.0, -1.0
    expected = (
        10 + 3 * (x * math.cos(angle) - y * math.sin(angle)),
        20 + 3 * (x * math.sin(angle) + y * math.cos(angle)),
    )
    assert frame.to_image(np.array([[x, y]]))[0] == pytest.approx(expected)


def test_a_frame_inside_a_frame():
    outer = Frame((5.0, 5.0), 2.0, 0.4)
    inner = outer.at(1.0, 2.0, 0.5)
    assert inner.angle == pytest.approx(0.9)
    origin = inner.to_image(np.zeros((1, 2)))
    assert origin == pytest.approx(outer.to_image(np.array([[1.0, 2.0]])))


def test_boxes_are_what_is_visible_of_a_part():
    canvas = Canvas(Image.new("RGB", (40, 30), (0, 0, 0)))
    frame = Frame((0.0, 0.0), 1.0)
    canvas.fill(frame, np.array([(4, 4), (19.9, 4), (19.9, 9.9), (4, 9.9)]), (255, 0, 0), part=1)
    canvas.fill(frame, np.array([(4, 4), (11.9, 4), (11.9, 9.9), (4, 9.9)]), (0, 255, 0), part=2)
    assert canvas.boxes([1, 2, 3]) == [(12, 4, 20, 10), (4, 4, 12, 10), None]
    red = np.asarray(canvas.image())[..., 0] > 0
    ys, xs = np.nonzero(red)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (12, 4, 20, 10)


def test_what_is_drawn_outside_is_not_in_the_box():
    canvas = Canvas(Image.new("RGB", (20, 20)))
    canvas.fill(Frame((0.0, 10.0), 1.0), ellipse(0, 0, 5, 5), (9, 9, 9), part=1)
    assert canvas.boxes([1]) == [(0, 5, 6, 16)]


def test_a_background_comes_back_unchanged():
    noise = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Canvas(Image.fromarray(noise)).image()), noise)


def test_a_stroke_has_its_width_and_taper():
    outline = stroke(np.array([(0.0, 0.0), (5.0, 0.0), (10.0, 0.0)]), 2.0, taper=0.5)
    assert np.ptp(outline[[0, -1], 1]) == pytest.approx(2.0)
    assert np.ptp(outline[[2, 3], 1]) == pytest.approx(1.0)
