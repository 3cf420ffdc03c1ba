"""The pages of the gallery: one module here = one kind of page; packages add others.

A module has some of these, and nothing else is asked of it. Each function gets the `Site`:

    KIND = "occlusion"            the kind of analysis that it shows. Then every function is called
                                  once for each readable analysis of that kind, `site.analysis`;
                                  without KIND once, for the run
    pages(site)                   yields a `Page` for each of its pages. With KIND their addresses
                                  begin with `site.slug`, which is distinct for each analysis
    count(site)                   how many files these are; left out, they are counted
    images(site)                  ids of images that its pages show whole: the gallery writes the
                                  picture, `site.image(id)`, and a page, `site.image_page(id)`
    overview_panel(site)          a `Panel` of the first page, or None
    feature_panels(site)          yields (layer, feature, Panel), for pages of features of the scan
                                  that the analysis works on: the name of a layer and a number
    image_panels(site)            yields (id, Panel), for pages of images; what is not shown whole
                                  has no page, and its panel is left out
    TEMPLATES                     templates of its own: {NAME: TEXT}, or the name of a folder of
                                  them beside the module; no name of ours

A template of a page extends `base.html`, one of a panel `panel.html`, and each escapes what it
shows. Beside its values it sees `site`, `results`, and `root`, which leads from the page to the top
of the gallery: `{{ root }}{{ site.image(id) }}`. Nothing inline is shown by a browser: no script,
no `style` attribute. Nothing here writes a file. A package of a user's adds a module by an entry
point: `[project.entry-points."zfscale.pages"]`, `NAME = "package.module"`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from zfscale import plugins
from zfscale.errors import UsageError, ZfscaleError
from zfscale.gallery.site import OVERVIEW, Site


@dataclass(frozen=True, slots=True)
class File:
    """A file to be written: its path below the gallery, and its bytes."""

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """A page to be rendered: its address below the gallery, its template and what it shows.

    `files` are pictures and data that this page shows, written before it.
    """

    path: str
    template: str
    values: Mapping[str, Any]
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a page that another module makes: a title, a template, and what it shows.

    `address` is the page that the title leads to, None without one; on the first page it is where
    the module's own pages begin. `files` are pictures and data that the panel shows.
    """

    title: str
    template: str
    values: Mapping[str, Any]
    files: tuple[File, ...] = ()
    address: str | None = None


Item = TypeVar("Item")

GROUP = "zfscale.pages"
FUNCTIONS = ("pages", "overview_panel", "feature_panels", "image_panels")


@dataclass(frozen=True)
class PageModule:
    """A module of pages. `package` is the package that added it, None for one of ours."""

    name: str
    functions: Any
    package: str | None = None

    @property
    def kind(self) -> str | None:
        """The kind of analysis that it shows, None if it shows the run."""
        kind: str | None = getattr(self.functions, "KIND", None)
        return kind

    @cached_property
    def templates(self) -> Mapping[str, str]:
        """Its own templates by name."""
        templates: Mapping[str, str] | str = getattr(self.functions, "TEMPLATES", {})
        if not isinstance(templates, str):
            return templates
        package = self.functions.__spec__.parent
        # A module that is in no package lies beside its folder on the disk.
        beside = resources.files(package) if package else Path(self.functions.__file__).parent
        try:
            return {
                each.name: each.read_text(encoding="utf-8")
                for each in (beside / templates).iterdir()
                if each.is_file()
            }
        except OSError as error:
            raise UsageError(
                f"the pages {self.name} of the package {self.package}: their templates cannot be "
                f"read: {error}"
            ) from error

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

    @property
    def name(self) -> str:
        """What the first page and the search call it: by its analysis, else by the module."""
        return self.module.name if self.site.of is None else self.site.of.name

    def on(self, site: Site) -> Source:
        """The same source over another site of the run."""
        return Source(self.module, replace(site, of=self.site.of))

    def pages(self) -> Iterator[Page]:
        """All its pages."""
        yield from self._each("pages")

    def count(self) -> int:
        """How many files its pages are."""
        if not hasattr(self.module.functions, "count"):
            return sum(1 + len(page.files) for page in self.pages())
        with self.module.responsible():
            return int(self.module.functions.count(self.site))

    def images(self) -> Iterator[str]:
        """Ids of images that its pages show whole."""
        yield from self._each("images")

    def panels(self) -> Iterator[tuple[str, Panel]]:
        """Each of its panels with the address of the page that it stands on, if there is one."""
        if hasattr(self.module.functions, "overview_panel"):
            with self.module.responsible():
                panel = self.module.functions.overview_panel(self.site)
            if panel is not None:
                yield OVERVIEW, panel
        for name, number, panel in self._each("feature_panels"):
            layer = self.site.layer(name)
            feature = None if layer is None else layer.feature(number)
            if layer is not None and feature is not None:
                yield layer.page(feature), panel
        for image, panel in self._each("image_panels"):
            if image in self.site.images:
                yield self.site.image_page(image), panel

    def _each(self, function: str) -> Iterator[Any]:
        """What a function of the module yields; nothing if it has none of that name."""
        if hasattr(self.module.functions, function):
            with self.module.responsible():
                yield from getattr(self.module.functions, function)(self.site)


def modules() -> list[PageModule]:
    """Every module of pages, built in or added by an installed package, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    built_in = [PageModule(name, importlib.import_module(f"{__name__}.{name}")) for name in names]
    added = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return [*built_in, *(_load(entry) for entry in added if entry.name not in names)]


def sources(site: Site) -> list[Source]:
    """Each module with everything in the run that it shows, in the order of the analyses."""
    each = modules()
    analyses = [one for one in site.results.analyses.values() if one.is_readable]
    of_analyses = [
        Source(module, replace(site, of=analysis))
        for analysis in analyses
        for module in each
        if module.kind == analysis.kind
    ]
    return [*of_analyses, *(Source(module, site) for module in each if module.kind is None)]


def with_neighbours(items: Iterable[Item]) -> Iterator[tuple[Item | None, Item, Item | None]]:
    """Each item between the one before and the one after it; three are held at a time."""
    before: Item | None = None
    item: Item | None = None
    for after in chain(items, (None,)):
        if item is not None:
            yield before, item, after
        before, item = item, after


def _load(entry: EntryPoint) -> PageModule:
    module = plugins.load(entry, "pages")
    if not any(hasattr(module, function) for function in FUNCTIONS):
        raise UsageError(
            f"{plugins.described(entry, 'pages')}: {entry.value} has none of the functions "
            f"{', '.join(FUNCTIONS)}"
        )
    return PageModule(entry.name, module, entry.dist.name if entry.dist is not None else "?")
