"""The networks of this package by name: `zfscale:NAME`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from torch import nn

from zfscale.errors import UsageError
from zfscale.models import checkpoint, networks
from zfscale.records import Preprocessing

FORM = "zfscale:NAME"
_SHIPPED = Path(networks.__file__).parent / "weights"


def names() -> list[str]:
    """All networks there are: every module of `zfscale.models.networks`."""
    modules = pkgutil.iter_modules(networks.__path__)
    return sorted(module.name.replace("_", "-") for module in modules)


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
    seed = checkpoint.seed_of(weights)
    if seed is not None:
        with checkpoint.seeded(seed):
            module: nn.Module = description.build()
            checkpoint.initialise(module)
        return module, preprocessing
    state = checkpoint.read(weights)
    with checkpoint.seeded(0):
        module = checkpoint.build_for(state, description.build)
    checkpoint.fill(module, state, weights)
    return module, preprocessing


def _find(name: str) -> ModuleType:
    if name not in names():
        raise UsageError(
            f"model: zfscale:{name}: there is no such network; there are {', '.join(names())}"
        )
    return importlib.import_module(f"{networks.__name__}.{name.replace('-', '_')}")
