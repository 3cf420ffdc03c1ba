"""Switches by hand and against plain loops; crops that hang over the border."""

from __future__ import annotations

import numpy as np
import torch

from zfscale.convnet.capture.geometry import Window
from zfscale.convnet.deconvolution.switches import ABSENT, crop, find


def test_offset_in_the_window():
    maps = torch.zeros(1, 1, 5, 5)
    maps[0, 0, 1, 2] = 3.0  # in row 1 of all windows above, column 2 of the left, 0 of the right
    found = find(maps, (3, 3), (2, 2), (0, 0), (1, 1), ceil_mode=False)
    assert found.dtype == torch.uint8
    assert found[0, 0].tolist() == [[5, 3], [0, 0]]


def test_equal_maxima_go_to_the_first():
    maps = torch.ones(1, 2, 6, 6)
    found = find(maps, (2, 3), (2, 3), (0, 0), (1, 1), ceil_mode=False)
    assert not found.any()


def test_padding_and_dilation_count_as_places():
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 1] = 1.0
    # Rows and columns -1, 1, 3 of the first window.
    found = find(maps, (3, 3), (1, 1), (1, 1), (2, 2), ceil_mode=False)
    assert found[0, 0, 0, 0] == 4


def test_a_crop_inside_the_map():
    maps = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    found = crop(maps, Window((2, 3), (1, 2), (0, -1)), 3, 2)
    np.testing.assert_array_equal(found, maps[:, 3:5, 3:6])


def test_a_crop_over_every_border_is_absent_outside():
    maps = np.random.default_rng(0).integers(0, 9, (2, 3, 4), np.uint8)
    window = Window((3, 3), (1, 1), (-1, -1))
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), constant_values=ABSENT)
    for y in range(3):
        for x in range(4):
            np.testing.assert_array_equal(crop(maps, window, y, x), padded[:, y : y + 3, x : x + 3])


def test_a_crop_quite_outside_is_absent():
    maps = np.zeros((1, 3, 3), np.uint8)
    for at in (-5, 5):
        assert (crop(maps, Window((2, 2), (1, 1), (0, 0)), at, 0) == ABSENT).all()
