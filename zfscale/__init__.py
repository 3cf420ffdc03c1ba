"""zfscale: what every feature of a convnet sees, over any number of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfscale.runs.results import Results

__version__ = "0.1.0"


def open(run: str) -> Results:  # noqa: A001
    """Open the results of a run: a directory or URL that holds `run.json`."""
    from zfscale.runs.results import Results

    return Results(run)
