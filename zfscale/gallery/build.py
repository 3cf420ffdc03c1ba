"""From a run to a directory of static HTML: pictures first, then pages, `index.html` last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import resources

import jinja2

from zfscale.errors import UsageError
from zfscale.gallery import names, sheets
from zfscale.gallery.output import File, Output
from zfscale.gallery.pages import Chapter, Page, Source, chapters, sources
from zfscale.gallery.site import Site, survey
from zfscale.runs.results import Results

Progress = Callable[[int, int], None]
"""Called with the number of files written and the number of files in all."""

ASSETS = ("gallery.css", "gallery.js", "figures.css", "figures.js")


def build(run: str, out: str | None = None, progress: Progress | None = None) -> str:
    """Write the gallery of what is complete in a run, and return the address of its `index.html`.

    `run` and `out` are directories or URLs; `out` is RUN/gallery if left out. Building again
    replaces every file by an equal one. Raises what `Results` raises; also if an image that is
    shown is gone from where the scan found it.
    """
    site = survey(Results(run))
    found = sources(site)
    book = chapters(found)
    output = Output(out or f"{site.results.run}/gallery")
    total = sheets.count(site, _images(book)) + len(ASSETS) + 1
    total += sum(source.count() for source in found)
    for done, file in enumerate(_files(site, found, book), start=1):
        output.write(file)
        if progress is not None:
            progress(done, total)
    return f"{output.address}/index.html"


def _files(site: Site, found: list[Source], book: list[Chapter]) -> Iterator[File]:
    yield from sheets.images_and_patches(site, _images(book))
    for layer in site.layers:
        if layer.projected:
            yield from sheets.projections(layer, site.results.projections(layer.name))
    static = resources.files("zfscale.gallery") / "static"
    for name in ASSETS:
        yield File(f"assets/{name}", (static / name).read_bytes())
    yield File("assets/features.js", search_data(site, book).encode("ascii"))
    yield from render(site, found, book)


def _images(book: list[Chapter]) -> set[str]:
    return {image for chapter in book for image in chapter.images}


def render(site: Site, found: list[Source], book: list[Chapter]) -> Iterator[File]:
    """All pages with their files, the first page last: a gallery that has one is whole."""
    environment = _environment(site, found, book)

    def to_file(source: Source, page: Page) -> File:
        root = "../" * page.path.count("/")
        with source.module.responsible():
            template = environment.get_template(page.template)
            html = template.render(page.values, site=source.site, root=root)
        return File(page.path, html.encode("utf-8", "replace"))

    last = []
    paths: set[str] = set()
    for source in found:
        for page in source.pages():
            if page.path in paths:
                raise UsageError(f"{source.module.name}: two pages are called {page.path}")
            paths.add(page.path)
            yield from page.files
            file = to_file(source, page)
            if page.path == "index.html":
                last.append(file)
            else:
                yield file
    yield from last


def search_data(site: Site, book: list[Chapter]) -> str:
    """The script that the search reads: one assignment of escaped JSON, no code from the run."""
    classes = {
        feature.top_class: feature.top[0]
        for layer in site.layers
        for feature in layer.features
        if feature.top_class is not None and feature.top
    }
    layers = [
        {"name": layer.name, "slug": layer.slug, "top": [f.top_class for f in layer.features]}
        for layer in site.layers
    ]
    data = {
        "classes": classes,
        "layers": layers,
        "chapters": [{"name": chapter.name, "address": chapter.address} for chapter in book],
    }
    return f"globalThis.zfscale={names.script_json(data)};\n"


def _environment(site: Site, found: list[Source], book: list[Chapter]) -> jinja2.Environment:
    ours = jinja2.PackageLoader("zfscale.gallery")
    added: dict[str, str] = {}
    for module in {source.module.name: source.module for source in found}.values():
        for name, text in module.templates.items():
            if name in added or name in ours.list_templates():
                owner = "another package" if name in added else "zfscale"
                raise UsageError(
                    f"the pages {module.name} of the package {module.package}: their template "
                    f"{name} is called like one of {owner}: give it another name"
                )
            added[name] = text
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([ours, jinja2.DictLoader(added)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": names.number, "percent": names.percent}
    environment.globals |= {"site": site, "results": site.results, "chapters": book}
    return environment
