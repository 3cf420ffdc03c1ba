"""Pages, panels and templates of other packages: where they stand, and what they may not do."""

import sys
from collections import Counter
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from gallery_pages import Markup, check_links, check_policy, content
from synthetic_run import Spec, add_scan, write_run
from synthetic_sweeps import occlusion

from zfscale.errors import UsageError, ZfscaleError
from zfscale.gallery import build
from zfscale.gallery import pages as page_modules
from zfscale.runs.results import Results

HOSTILE = '"><script>document.title="owned"</script><img src=x onerror=alert(1)>'
PANEL = '{% extends "panel.html" %}{% block content %}<p>said: {{ text }}</p>{% endblock %}'


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, **modules: str) -> None:
    """Modules of pages, each an entry point as an installed package has it."""
    entries = []
    for name, text in modules.items():
        module = f"{name}_{folder.name}".replace("-", "_")
        (folder / f"{module}.py").write_text(
            f"from zfscale.gallery.pages import File, Page, Panel\n{text}"
        )
        sys.modules.pop(module, None)
        entries.append(EntryPoint(name, module, "zfscale.pages"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(page_modules, "entry_points", lambda group: entries)


def test_a_package_adds_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pages.py").write_text(
        "from zfscale.gallery.pages import Page\n"
        'KIND = "occlusion"\n'
        'TEMPLATES = {"mine.html": "<p>{{ site.title }}: {{ text }}</p>"}\n'
        "def pages(site):\n"
        f'    yield Page(f"{{site.slug}}-mine.html", "mine.html", {{"text": {HOSTILE!r}}})\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("mine", "my_pages", "zfscale.pages")
    monkeypatch.setattr(page_modules, "entry_points", lambda group: [entry])
    run = write_run(tmp_path / "run")
    occlusion(run, count=1, name="small")
    build(str(run))
    text = (run / "gallery" / "small-mine.html").read_text()
    assert text.startswith("<p>Occlusion: small: &#34;&gt;&lt;script&gt;")
    broken = EntryPoint("mine", "nowhere", "zfscale.pages")
    monkeypatch.setattr(page_modules, "entry_points", lambda group: [broken])
    with pytest.raises(UsageError, match=r"the pages mine .* cannot be loaded"):
        build(str(run))


PANELS = f"""
KIND = "occlusion"
TEMPLATES = {{"mine.html": {PANEL!r}}}
def panel(site, what, files=()):
    return Panel({HOSTILE!r}, "mine.html", {{"text": f"{{site.analysis.name}} {{what}}"}}, files)
def overview_panel(site):
    return panel(site, "overview", (File(f"{{site.slug}}-first.txt", b"first"),))
def feature_panels(site):
    yield "conv2", 1, panel(site, "feature")
    yield "conv2", 99, panel(site, "no feature")
    yield "nowhere", 0, panel(site, "no layer")
def image_panels(site):
    for identity in site.analysis.images["image_id"]:
        yield identity, panel(site, identity, (File(f"{{site.slug}}-{{identity}}.txt", b"x"),))
    yield "0" * 32, panel(site, "no image", (File("no-image.txt", b"x"),))
"""


def test_panels_stand_on_the_pages_that_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (Spec("conv1"), Spec("conv2", field=23, size=4, stride=8))
    run = write_run(tmp_path / "run", layers)
    add_scan(run, layers, name="deep", deconvolve=None)
    occlusion(run, count=2)
    occlusion(run, count=3, name="small", scan="deep")
    install(monkeypatch, tmp_path, mine=PANELS)
    done: list[tuple[int, int]] = []
    build(str(run), progress=lambda *at: done.append(at))
    gallery = run / "gallery"
    files = content(gallery)
    assert done == [(number, len(files)) for number in range(1, len(files) + 1)]
    expected = Counter({"index.html": 2})
    expected |= {"features/conv2/0001.html": 1, "deep/features/conv2/0001.html": 1}
    for name in ("occlusion", "small"):
        for identity in Results(str(run))[name].images["image_id"]:
            expected[f"images/{identity}.html"] += 1
            assert files[f"{name}-{identity}.txt"] == b"x"
        assert files[f"{name}-first.txt"] == b"first"
    assert "no-image.txt" not in files
    said = {
        path: data.decode().count("<p>said:")
        for path, data in files.items()
        if path.endswith(".html")
    }
    assert {path: count for path, count in said.items() if count} == expected
    assert "said: small feature" in files["deep/features/conv2/0001.html"].decode()
    assert "said: occlusion feature" in files["features/conv2/0001.html"].decode()
    assert HOSTILE in Markup(gallery / "index.html").text
    check_policy(gallery)
    check_links(gallery)


def test_images_of_a_package_are_shown_whole_with_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", (Spec("conv1", features=1),), k=1, dead=None)
    shown = Results(str(run)).images["id"].iloc[[3, 7]].tolist()
    install(monkeypatch, tmp_path, mine=f"def pages(site):\n    return ()\n"
            f"def images(site):\n    return {shown!r}\n")  # fmt: skip
    build(str(run))
    winner = Results(str(run)).winners["image_id"].tolist()
    names = {path.stem for path in (run / "gallery" / "images").glob("*.html")}
    assert names == {*shown, *winner}
    install(monkeypatch, tmp_path, mine="def pages(site):\n    return ()\n"
            "def images(site):\n    return ['0' * 32]\n")  # fmt: skip
    with pytest.raises(UsageError, match=r"image '0{32}' is to be shown, and no scan"):
        build(str(run))


def test_templates_may_lie_in_a_folder_beside_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = (
        'TEMPLATES = "looks"\n'
        "def pages(site):\n"
        '    yield Page(f"{__name__}.html", "look.html", {"text": "<b>"})\n'
        "from zfscale.gallery.pages import Page\n"
    )
    package = tmp_path / "in_package"
    for folder in (package, tmp_path):
        (folder / "looks").mkdir(parents=True)
        (folder / "looks" / "look.html").write_text(
            '{% extends "base.html" %}{% block main %}{{ text }} of '
            + folder.name
            + "{% endblock %}"
        )
        (folder / "flat_pages.py").write_text(pages)
    (package / "__init__.py").write_text("")
    entries = [EntryPoint("a", "in_package.flat_pages", "zfscale.pages")]
    entries.append(EntryPoint("b", "flat_pages", "zfscale.pages"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(page_modules, "entry_points", lambda group: entries)
    run = write_run(tmp_path / "run")
    build(str(run))
    for name, folder in (("in_package.flat_pages", "in_package"), ("flat_pages", tmp_path.name)):
        assert f"&lt;b&gt; of {folder}" in (run / "gallery" / f"{name}.html").read_text()
    (tmp_path / "looks" / "look.html").unlink()
    (tmp_path / "looks").rmdir()
    with pytest.raises(UsageError, match=r"the pages b of the package .* templates cannot be read"):
        build(str(run))


def test_packages_may_have_templates_of_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each module sees its own."""
    text = 'TEMPLATES = {{"page.html": "{0}"}}\ndef pages(site):\n'
    text += '    yield Page("{0}.html", "page.html", {{}})\n'
    install(monkeypatch, tmp_path, one=text.format("one"), two=text.format("two"))
    run = write_run(tmp_path / "run")
    build(str(run))
    for name in ("one", "two"):
        assert (run / "gallery" / f"{name}.html").read_text() == name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'TEMPLATES = {"layer.html": "mine"}\ndef pages(site):\n    return iter(())\n',
            "their template layer.html is called like one of zfscale",
        ),
        (
            'def pages(site):\n    yield Page("layers/CONV1.html", "base.html", {})\n',
            "two pages are called layers/CONV1.html",
        ),
        ("nothing = 1\n", "has none of the functions pages, overview_panel"),
    ],
)
def test_what_is_taken_or_missing_is_refused(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    install(monkeypatch, tmp_path, mine=text)
    with pytest.raises(UsageError, match=told):
        build(str(run))


@pytest.mark.parametrize(
    "text",
    [
        "def pages(site):\n    yield {}['nothing']\n",
        "def overview_panel(site):\n    return {}['nothing']\n",
        "def image_panels(site):\n    yield {}['nothing']\n",
        "TEMPLATES = {'p': '{{nothing}}'}\ndef pages(site):\n    yield Page('a', 'p', {})\n",
    ],
)
def test_an_error_of_a_package_names_it(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    install(monkeypatch, tmp_path, mine=text)
    with pytest.raises(ZfscaleError, match=r"the pages mine of the package .*'nothing'"):
        build(str(run))
