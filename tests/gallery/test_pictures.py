"""Contrast, montages and encoding."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zfscale.gallery.pictures import encode, fit, montage, side, suffix, tile_shape, to_grey


def test_zero_is_mid_grey_and_the_contrast_is_symmetric() -> None:
    projection = np.zeros((4, 4, 3), np.float32)
    assert (to_grey(projection) == 128).all()
    projection[:2], projection[2:] = 0.5, -0.5
    shown = to_grey(projection)
    assert (shown[:2] == 255).all()
    assert (shown[2:] == 1).all()


@given(st.floats(1e-20, 1e20), st.integers(0, 99))
def test_contrast_does_not_depend_on_the_scale(scale: float, seed: int) -> None:
    projection = np.random.default_rng(seed).normal(size=(5, 7, 3)).astype(np.float32)
    shown = to_grey(projection * np.float32(scale)).astype(int)
    assert np.abs(shown - to_grey(projection)).max() <= 1
    visible = shown != 128
    assert ((shown > 128) == (projection > 0))[visible].all()


def test_an_outlier_does_not_turn_the_rest_grey() -> None:
    projection = np.random.default_rng(0).normal(size=(32, 32, 3)).astype(np.float32)
    projection[0, 0, 0] = 100
    assert to_grey(projection)[1:].std() > 10


@pytest.mark.parametrize(
    ("field", "tile"),
    [
        ((1, 1), (48, 48)),
        ((7, 7), (49, 49)),
        ((48, 48), (48, 48)),
        ((51, 51), (51, 51)),
        ((224, 224), (96, 96)),
        ((200, 100), (96, 48)),
        ((5, 1000), (1, 96)),
    ],
)
def test_tile_shape(field: tuple[int, int], tile: tuple[int, int]) -> None:
    assert tile_shape(field) == tile


def test_enlarging_repeats_pixels() -> None:
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(fit(pixels, (6, 6)), pixels.repeat(2, 0).repeat(2, 1))


def test_side() -> None:
    assert [side(count) for count in (0, 1, 2, 4, 5, 9, 10)] == [1, 1, 2, 2, 3, 3, 4]


def test_montage_puts_tiles_row_by_row_and_hatches_the_rest() -> None:
    tiles = np.stack([np.full((8, 8, 3), value, np.uint8) for value in range(1, 6)])
    sheet = montage(tiles, 9)
    assert sheet.shape == (24, 24, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        assert (sheet[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] == index + 1).all()
    assert len(np.unique(sheet[16:, 16:])) == 2
    assert (montage(tiles[:0], 1) >= 128).all()


def test_small_pictures_are_lossless() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 21, 3)).astype(np.uint8)
    assert suffix((7, 7)) == "png"
    assert suffix((224, 10)) == "jpg"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(pixels, "png")))), pixels)
    assert encode(pixels, "jpg") == encode(pixels, "jpg")
    assert Image.open(io.BytesIO(encode(pixels, "jpg"))).format == "JPEG"
