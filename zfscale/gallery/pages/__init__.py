"""The pages of the gallery: one module here = one kind of page; packages add others.

A module has plain functions, of which each gets the `Site`:

    KIND = "occlusion"                     the kind of analysis that it shows. Then every function
                                           is called once for each complete analysis of that kind,
                                           `site.analysis`; without KIND once, for the run.
    pages(site) -> Iterator[Page]          its pages; with KIND their addresses begin with
                                           `site.slug`, which is distinct for each analysis
    count(site) -> int                     how many files these are; left out, they are counted
    chapter(site) -> Chapter | None        what the first page shows of it, and where it begins
    TEMPLATES = {NAME: TEXT}               templates of its own, which may extend `base.html`; no
                                           name of ours

It chooses what a template shows; the template escapes it. Nothing inline is shown by a browser: no
`<script>`, no `style` attribute. Nothing here writes a file. A package of a user's adds a module by
an entry point: `[project.entry-points."zfscale.pages"]`, `NAME = "package.module"`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zfscale.errors import UsageError, ZfscaleError
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

    `figure` is the figure of the paper that it makes, None for another; `template` draws it on the
    first page from `values`; `images` are those that its pages show whole.
    """

    name: str
    address: str
    figure: int | None
    template: str
    values: Mapping[str, Any]
    images: frozenset[str] = field(repr=False)


GROUP = "zfscale.pages"


@dataclass(frozen=True)
class PageModule:
    """A module of pages. `package` is the package that added it, None for one of ours."""

    name: str
    functions: Any
    package: str | None = None

    @property
    def templates(self) -> Mapping[str, str]:
        """Its own templates by name."""
        found: Mapping[str, str] = getattr(self.functions, "TEMPLATES", {})
        return found

    @contextmanager
    def responsible(self) -> Iterator[None]:
        """A block that runs its code: whatever goes wrong in a package is told as the package's."""
        try:
            yield
        except Exception as error:
            if self.package is None or isinstance(error, ZfscaleError):
                raise
            raise ZfscaleError(
                f"the pages {self.name} of the package {self.package}: {type(error).__name__}: "
                f"{error}; `zfscale --debug gallery` shows where"
            ) from error


@dataclass(frozen=True)
class Source:
    """A module of pages, and the site as it sees it: with the analysis that it is to show."""

    module: PageModule
    site: Site

    def pages(self) -> Iterator[Page]:
        """All its pages."""
        with self.module.responsible():
            yield from self.module.functions.pages(self.site)

    def count(self) -> int:
        """How many files its pages are."""
        if not hasattr(self.module.functions, "count"):
            return sum(1 + len(page.files) for page in self.pages())
        with self.module.responsible():
            return int(self.module.functions.count(self.site))

    def chapter(self) -> Chapter | None:
        """What the first page shows of it."""
        if not hasattr(self.module.functions, "chapter"):
            return None
        with self.module.responsible():
            chapter: Chapter | None = self.module.functions.chapter(self.site)
            return chapter


def modules() -> list[PageModule]:
    """Every module of pages, built in or added by an installed package, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    built_in = [PageModule(name, importlib.import_module(f"{__name__}.{name}")) for name in names]
    added = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return [*built_in, *(_load(entry) for entry in added if entry.name not in names)]


def sources(site: Site) -> list[Source]:
    """Each module with everything in the run that it shows."""
    found = []
    for module in modules():
        kind = getattr(module.functions, "KIND", None)
        if kind is None:
            found.append(Source(module, site))
            continue
        of_kind = (each for each in site.results.analyses.values() if each.kind == kind)
        found += [Source(module, replace(site, of=one)) for one in of_kind if one.is_readable]
    return found


def chapters(found: Iterable[Source]) -> list[Chapter]:
    """The chapters of a run: those of figures of the paper in its order, then the others."""
    given = [source.chapter() for source in found]
    return sorted(
        (one for one in given if one is not None),
        key=lambda one: (one.figure is None, one.figure or 0, one.name),
    )


def _load(entry: EntryPoint) -> PageModule:
    package = entry.dist.name if entry.dist is not None else "?"
    try:
        module = entry.load()
    except Exception as error:  # it is a package's code: whatever it raises
        raise UsageError(
            f"the pages {entry.name} of the package {package} ({entry.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, "pages"):
        raise UsageError(
            f"the pages {entry.name} of the package {package}: {entry.value} has no function pages"
        )
    return PageModule(entry.name, module, package)
