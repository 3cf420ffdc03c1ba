"""Kinds of pages: one file here = one kind. A further analysis adds its file, nothing else.

A module has `pages(site) -> Iterator[Page]` and `count(site) -> int`, how many files these are.
It chooses what a template shows; the template escapes it. The module of an analysis that a run
may hold also has `chapter(site)`, None if this run does not hold it. Nothing here writes a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from zfscale.gallery.output import File
from zfscale.gallery.site import Site


@dataclass(frozen=True, slots=True)
class Page:
    """A page to be rendered: its address below the gallery, its template and what it shows.

    `files` are pictures and data that this page shows, written before it.
    """

    path: str
    template: str
    values: Mapping[str, Any]
    files: tuple[File, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """An analysis beyond the scan, as the first page, the search and the pictures know it.

    `figure` is the figure of the paper that it makes, which orders the chapters; `template` draws
    it on the first page from `values`; `images` are those that its pages show whole.
    """

    name: str
    address: str
    figure: int
    template: str
    values: Mapping[str, Any]
    images: frozenset[str] = field(repr=False)


class Kind(Protocol):
    """The shape of a module in this package; `chapter` is left out by some."""

    def count(self, site: Site) -> int: ...

    def pages(self, site: Site) -> Iterator[Page]: ...


def kinds() -> list[Kind]:
    """Every module in this package, by name."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules: list[Any] = [importlib.import_module(f"{__name__}.{name}") for name in found]
    return modules


def chapters(site: Site) -> list[Chapter]:
    """The chapters of a run, in the order of the paper."""
    given = [getattr(kind, "chapter", None) for kind in kinds()]
    found = [chapter(site) for chapter in given if chapter is not None]
    return sorted((one for one in found if one is not None), key=lambda one: one.figure)
