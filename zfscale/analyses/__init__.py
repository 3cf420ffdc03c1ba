"""The analyses: one module or folder here = one kind in a job file; packages add others.

A module defines one subclass of `zfscale.analysis.Analysis`, whose `kind` is the name of the
module; a folder imports it in its `__init__.py`. Nothing else names it. A package of a user's
adds a kind with an entry point: `[project.entry-points."zfscale.analyses"]`, `KIND =
"package.module:Class"`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zfscale import plugins
from zfscale.analysis import Analysis
from zfscale.errors import UsageError

GROUP = "zfscale.analyses"
_HELPERS = "shared"
"""The folder of what several analyses share; it is none itself."""


def names() -> list[str]:
    """All kinds of analyses there are, built in or added by installed packages."""
    return sorted({*_built_in(), *_added()})


@cache
def load(kind: str) -> type[Analysis[Any]]:
    """The class of a kind of analysis. Raises UsageError for an unknown one."""
    if kind in _built_in():
        module = importlib.import_module(f"{__name__}.{kind}")
        classes = (value for value in vars(module).values() if isinstance(value, type))
        own = [each for each in classes if issubclass(each, Analysis) and each is not Analysis]
        return next(each for each in own if each.kind == kind)
    if kind not in _added():
        raise UsageError(f"there is no analysis {kind!r}; there are {', '.join(names())}")
    return _from_package(_added()[kind])


def _from_package(entry: EntryPoint) -> type[Analysis[Any]]:
    """The class that a package adds. Whatever is wrong with it is told as the package's fault."""
    found = plugins.load(entry, "analysis")
    if not (isinstance(found, type) and issubclass(found, Analysis) and found.kind == entry.name):
        raise UsageError(
            f"{plugins.described(entry, 'analysis')}: {entry.value} is no subclass of "
            f"zfscale.analysis.Analysis with kind = {entry.name!r}"
        )
    return found


@cache
def _built_in() -> tuple[str, ...]:
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name for name in modules if name != _HELPERS)


def _added() -> dict[str, EntryPoint]:
    """Entry points by kind; a built-in analysis cannot be replaced."""
    return {e.name: e for e in entry_points(group=GROUP) if e.name not in _built_in()}
