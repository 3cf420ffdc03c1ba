"""From a run to a directory of static HTML: pictures first, then pages, `index.html` last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from zfscale.errors import UsageError
from zfscale.gallery import names, sheets
from zfscale.gallery.pages import File, Page, PageModule, Panel, Source, sources
from zfscale.gallery.site import OVERVIEW, load_site, with_images
from zfscale.runs.results import Results
from zfscale.storage import open_storage

Progress = Callable[[int, int], None]
"""Called with the number of files written and the number of files in all."""

ASSETS = ("gallery.css", "gallery.js", "figures.css", "figures.js")


def build(run: str, out: str | None = None, progress: Progress | None = None) -> str:
    """Write the gallery of what is complete in a run, and return the address of its `index.html`.

    `run` and `out` are directories or URLs; `out` is RUN/gallery if left out. Building again
    replaces every file by an equal one. Raises what `Results` raises; also if an image that is
    shown is gone from where the scan found it, and UsageError where `out` is a run itself.
    """
    gallery = Gallery(Results(run))
    address = (out or f"{gallery.site.results.run}/gallery").rstrip("/")
    storage = open_storage(address)
    if storage.exists("run.json"):
        raise UsageError(
            f"--out: {address} is a run, and pages would lie among its tables; name a directory of "
            f"its own, e.g. {address}/gallery"
        )
    total = gallery.count()
    for done, file in enumerate(gallery.files(), start=1):
        storage.write(file.path, file.data)
        if progress is not None:
            progress(done, total)
    return f"{address}/{OVERVIEW}"


class Gallery:
    """All files of the gallery of a run. Writes none of them.

    Panels are kept by the address of the page that they stand on, without their files: these are
    asked for again when they are written.
    """

    def __init__(self, results: Results) -> None:
        site = load_site(results)
        without_images = sources(site)
        others = {image for source in without_images for image in source.images()}
        self.site = with_images(site, others)
        self._sources = [source.on(self.site) for source in without_images]
        self._panels: defaultdict[str, list[tuple[Source, Panel]]] = defaultdict(list)
        self._files_of_panels = 0
        for source in self._sources:
            for address, panel in source.panels():
                self._files_of_panels += len(panel.files)
                self._panels[address].append((source, replace(panel, files=())))
        self._environments = self._prepare()

    @property
    def chapters(self) -> list[tuple[str, str]]:
        """Name and address of each analysis that has pages of its own, in the order of the run."""
        return [
            (source.name, panel.address)
            for source, panel in self._panels[OVERVIEW]
            if panel.address is not None
        ]

    def count(self) -> int:
        """How many files there will be."""
        pages = sum(source.count() for source in self._sources)
        return sheets.count(self.site) + len(ASSETS) + 1 + self._files_of_panels + pages

    def files(self) -> Iterator[File]:
        """Every file, the first page last: a gallery that has one is whole."""
        yield from sheets.images_and_patches(self.site)
        for scan in self.site.scans:
            yield from sheets.projections(scan)
        static = resources.files("zfscale.gallery") / "static"
        for name in ASSETS:
            yield File(f"assets/{name}", (static / name).read_bytes())
        yield File("assets/features.js", self._search_data().encode("ascii"))
        if self._files_of_panels:
            for source in self._sources:
                for _, panel in source.panels():
                    yield from panel.files
        yield from self._pages()

    def _pages(self) -> Iterator[File]:
        last = []
        paths: set[str] = set()
        for source in self._sources:
            for page in source.pages():
                if page.path.casefold() in paths:
                    raise UsageError(f"{source.module.name}: two pages are called {page.path}")
                paths.add(page.path.casefold())
                yield from page.files
                file = File(page.path, self._render(source, page).encode("utf-8", "replace"))
                if page.path == OVERVIEW:
                    last.append(file)
                else:
                    yield file
        yield from last

    def _render(self, source: Source, page: Page) -> Markup:
        root = "../" * page.path.count("/")
        panels = [
            self._fill(from_, panel, root=root, panel=panel, id=f"panel-{number}")
            for number, (from_, panel) in enumerate(self._panels.get(page.path, ()), start=1)
        ]
        return self._fill(source, page, root=root, panels=panels)

    def _fill(self, source: Source, item: Page | Panel, **context: Any) -> Markup:
        """A template with its values, which it has escaped."""
        with source.module.responsible():
            template = self._environments[source.module.name].get_template(item.template)
            return Markup(template.render(item.values, site=source.site, **context))  # noqa: S704

    def _prepare(self) -> dict[str, jinja2.Environment]:
        """An environment for each module: it finds our templates, and no module's but its own."""
        ours = jinja2.PackageLoader("zfscale.gallery")
        common = jinja2.Environment(
            loader=ours,
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        common.filters |= {"number": names.number, "percent": names.percent}
        common.globals |= {
            "site": self.site,
            "results": self.site.results,
            "chapters": self.chapters,
        }
        taken = set(ours.list_templates())
        modules = {source.module.name: source.module for source in self._sources}
        return {name: _environment(common, taken, module) for name, module in modules.items()}

    def _search_data(self) -> str:
        """The script that the search reads: one assignment of escaped JSON, no code of the run."""
        scans = self.site.scans
        classes = {
            feature.top_class: feature.top[0]
            for scan in scans
            for layer in scan.layers
            for feature in layer.features
            if feature.top_class is not None and feature.top
        }
        layers = [
            {
                "name": layer.name,
                "folder": layer.folder,
                "slug": layer.slug,
                "scan": scan.name if len(scans) > 1 else "",
                "top": [feature.top_class for feature in layer.features],
            }
            for scan in scans
            for layer in scan.layers
        ]
        places = [(scan.name, f"{OVERVIEW}#{scan.anchor}") for scan in scans if len(scans) > 1]
        chapters = [
            {"name": name, "address": address} for name, address in (*places, *self.chapters)
        ]
        data = {"classes": classes, "layers": layers, "chapters": chapters}
        return f"globalThis.zfscale={names.script_json(data)};\n"


def _environment(
    common: jinja2.Environment, taken: set[str], module: PageModule
) -> jinja2.Environment:
    for name in module.templates:
        if name in taken:
            raise UsageError(
                f"the pages {module.name} of the package {module.package}: their template {name} "
                "is called like one of zfscale: give it another name"
            )
    loaders = [jinja2.DictLoader(module.templates), common.loader]
    return common.overlay(loader=jinja2.ChoiceLoader([each for each in loaders if each]))
