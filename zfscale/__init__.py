"""zfscale: what every feature of a convnet sees, over any number of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfscale.records import Preprocessing as Preprocessing
    from zfscale.runs.results import Results

__version__ = "0.1.0"
__all__ = ["Preprocessing", "__version__", "open"]


def open(run: str) -> Results:  # noqa: A001
    """Open the results of a run: a directory or URL that holds `run.json`."""
    from zfscale.runs.results import Results

    return Results(run)


def __getattr__(name: str) -> Any:
    """Names of the package that take a library to load, when they are first asked for."""
    if name == "Preprocessing":
        from zfscale.records import Preprocessing

        return Preprocessing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
