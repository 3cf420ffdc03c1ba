"""Colours for figures: a scale for measured values, and a few for classes. Knows numpy only.

A figure has the same colours on light and dark paper, so that its legend is always true.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SCALE = [
    "#0d0887",
    "#46039f",
    "#7201a8",
    "#9c179e",
    "#bd3786",
    "#d8576b",
    "#ed7953",
    "#fb9f3a",
    "#fdca26",
    "#f0f921",
]
"""From low to high: blue, red, yellow, evenly lighter. Anchors of "plasma" (S. van der Walt and
N. Smith, 2015), which shows equal differences as equal steps, also to the colour-blind."""

CLASSES = [
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#7a4fa3",
    "#8c6239",
]
"""Colours that stay apart on light and dark paper; the first seven are those of Okabe and Ito."""

OTHER = "#84878d"
"""All further classes."""

MISSING = "#808080"
"""No value here."""


def on_scale(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Values (...) as colours (..., 3) uint8 RGB: `low` is the first anchor, `high` the last.

    Values beyond the ends have the colour of the end; NaN has that of MISSING. If `low` equals
    `high` there is nothing to tell apart, and all values have the colour of the middle.
    """
    anchors = np.array([rgb(colour) for colour in SCALE], np.float64)
    spread = high - low
    places = (values - low) / spread if spread > 0 else np.where(np.isnan(values), values, 0.5)
    at = np.nan_to_num(np.clip(places, 0.0, 1.0)) * (len(anchors) - 1)
    steps = np.arange(len(anchors))
    channels = [np.interp(at, steps, anchors[:, channel]) for channel in range(3)]
    shown: NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    shown[np.isnan(values)] = rgb(MISSING)
    return shown


def rgb(colour: str) -> tuple[int, int, int]:
    """A colour `#rrggbb` as three values in 0..255."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
