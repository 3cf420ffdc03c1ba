"""Where models come from: one file = one prefix of `model:`, and packages add others.

A module here has the name of its prefix and holds

    FORM: str                                              how it is written, for messages
    def load(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing]

`load` gets what stands after the colon, and raises UsageError naming what cannot be found, read or
fitted together. Nothing else names the module. A package of a user's adds a prefix with an entry
point: `[project.entry-points."zfscale.models"]`, `PREFIX = "package.module"`, a module of the same
shape.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any, Protocol

from torch import nn

from zfscale import plugins
from zfscale.records import Preprocessing

GROUP = "zfscale.models"


class ModelSource(Protocol):
    """The shape of a module of this package."""

    FORM: str

    def load(self, name: str, weights: str | None) -> tuple[nn.Module, Preprocessing]: ...


def prefixes() -> list[str]:
    """All prefixes there are, built in or added by installed packages."""
    return sorted({*_built_in(), *entry_points(group=GROUP).names})


def source(prefix: str) -> ModelSource | None:
    """The source of a prefix, or None where there is none of this name."""
    if prefix in _built_in():
        module: Any = importlib.import_module(f"{__name__}.{prefix}")
        return module  # type: ignore[no-any-return]
    for entry in entry_points(group=GROUP, name=prefix):
        return plugins.load(entry, "source of models")  # type: ignore[no-any-return]
    return None


def _built_in() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]
