"""The networks of this package by name: `zfscale:NAME`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from torch import nn

from zfscale.errors import UsageError
from zfscale.models import checkpoint as _checkpoint
from zfscale.records import Preprocessing

_PACKAGE = Path(__file__).parent / "networks"
_SHIPPED = _PACKAGE / "weights"


def names() -> list[str]:
    """All networks there are: every public module of this package."""
    modules = pkgutil.iter_modules([str(_PACKAGE)])
    return sorted(
        module.name.replace("_", "-") for module in modules if not module.name.startswith("_")
    )


def load(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing]:
    """Build network `name` with the given weights, or with those that ship with it."""
    description = _find(name)
    preprocessing: Preprocessing = description.PREPROCESSING
    if weights is None and hasattr(description, "WEIGHTS"):
        weights = str(_SHIPPED / description.WEIGHTS)
    if weights is None:
        raise UsageError(
            f"model: zfscale:{name} comes without weights; set weights to a file, "
            f"or to seed:0 for random ones"
        )
    seed = _checkpoint.seed_of(weights)
    if seed is not None:
        with _checkpoint.seeded(seed):
            module: nn.Module = description.build()
            _checkpoint.initialise(module)
        return module, preprocessing
    state = _checkpoint.read(weights)
    with _checkpoint.seeded(0):
        module = _checkpoint.build_for(state, description.build)
    _checkpoint.fill(module, state, weights)
    return module, preprocessing


def _find(name: str) -> ModuleType:
    if name not in names():
        raise UsageError(
            f"model: zfscale:{name}: there is no such network; there are {', '.join(names())}"
        )
    return importlib.import_module(f"{__package__}.networks.{name.replace('-', '_')}")
