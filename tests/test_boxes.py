"""Boxes in the network's input, against what decoding makes of a drawn rectangle."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zfscale.boxes import PartBox, in_input
from zfscale.collection.decode import decode
from zfscale.records import Preprocessing

RECIPES = {
    "short side, then the centre": Preprocessing(32, (24, 24), (0.0,) * 3),
    "half a pixel on either side": Preprocessing(33, (24, 28), (0.0,) * 3),
    "the whole image": Preprocessing(None, (20, 30), (0.0,) * 3),
    "framed": Preprocessing(16, (24, 29), (0.0,) * 3),
    "nearest": Preprocessing(40, (32, 32), (0.0,) * 3, interpolation="nearest-exact"),
}


def seen(box: PartBox, width: int, height: int, recipe: Preprocessing) -> np.ndarray:
    """Which pixels of the input show a white box on black, and mostly that: bool (H, W)."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return decode(buffer.getvalue(), recipe).pixels[0].numpy() > 127


@given(st.sampled_from(sorted(RECIPES)), st.data())
def test_a_box_lies_where_decoding_puts_it(name: str, data: st.DataObject) -> None:
    recipe = RECIPES[name]
    width, height = data.draw(st.integers(24, 90)), data.draw(st.integers(24, 90))
    x0, y0 = data.draw(st.integers(0, width - 12)), data.draw(st.integers(0, height - 12))
    x1, y1 = data.draw(st.integers(x0 + 12, width)), data.draw(st.integers(y0 + 12, height))
    part = PartBox("nose", x0, y0, x1, y1)
    shown = seen(part, width, height, recipe)
    box = in_input(part, width, height, recipe)
    if box is None:
        assert not shown.any()
        return
    top, left, bottom, right = box
    assert 0 <= top < bottom <= recipe.crop[0]
    assert 0 <= left < right <= recipe.crop[1]
    inside = np.zeros_like(shown)
    inside[top:bottom, left:right] = True
    assert not (shown & ~inside).any()
    # A pixel on the edge may show less than half of it; all others show it.
    assert shown[top + 1 : bottom - 1, left + 1 : right - 1].all()


@pytest.mark.parametrize(
    ("part", "recipe", "expected"),
    [
        # 100 x 50 becomes 64 x 32 (height 32); the crop leaves out 4 rows and 20 columns a side.
        (PartBox("a", 50, 10, 75, 30), (32, (24, 24)), (2, 12, 16, 24)),
        # Half a pixel of the stored image is a whole one of the input.
        (PartBox("a", 0.5, 0.5, 1, 1), (100, (100, 200)), (1, 1, 2, 2)),
        # What a box touches it covers.
        (PartBox("a", 0, 0, 1, 1), (25, (25, 50)), (0, 0, 1, 1)),
        (PartBox("a", 1, 1, 3, 3), (25, (25, 50)), (0, 0, 2, 2)),
        # Over the border: the image ends there, also where a frame goes on.
        (PartBox("a", -9, -9, 10, 200), (50, (60, 120)), (5, 10, 55, 20)),
        # Cropped away.
        (PartBox("a", 0, 0, 10, 50), (32, (24, 24)), None),
        (PartBox("a", 200, 0, 210, 50), (50, (50, 100)), None),
    ],
)
def test_known_boxes(part: PartBox, recipe: tuple, expected: tuple | None) -> None:
    assert in_input(part, 100, 50, Preprocessing(*recipe, (0.0,) * 3)) == expected
