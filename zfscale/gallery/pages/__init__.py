"""Kinds of pages: one file here = one kind. A further analysis adds its file, nothing else.

A module has `pages(site) -> Iterator[Page]`. It chooses what a template shows; the template
escapes it. Nothing here writes a file or makes a picture.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zfscale.gallery.site import Site


@dataclass(frozen=True, slots=True)
class Page:
    """A page to be rendered: its address below the gallery, its template and what it shows."""

    path: str
    template: str
    values: Mapping[str, Any]


def kinds() -> list[Callable[[Site], Iterator[Page]]]:
    """The `pages` function of every module in this package, by name."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}").pages for name in found]
