"""What every page of a gallery must keep to, and the reading of one. Shared by its tests."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from PIL import Image


class Markup(HTMLParser):
    """All tags, attributes and text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> list[str]:
        return [values[n] for _, values in self.tags for n in ("href", "src") if n in values]

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str]]:
        """The attributes of all tags of a name, or of those among them with a class."""
        found = [values for name, values in self.tags if name == tag]
        return [v for v in found if kind is None or kind in v.get("class", "").split()]


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_links(gallery: Path) -> None:
    """Every address in every page leads to a file of the gallery, and to what is in it."""
    for page in gallery.rglob("*.html"):
        for link in Markup(page).links():
            address, anchor = urldefrag(link)
            target = (page.parent / (unquote(address) or page.name)).resolve()
            assert target.is_file(), f"{page}: {link}"
            assert target.is_relative_to(gallery.resolve())
            if anchor:
                named = {values.get("id") for _, values in Markup(target).tags}
                assert anchor in named, f"{page}: {link}"


def check_policy(gallery: Path) -> None:
    """Nothing comes from elsewhere, and nothing is inline."""
    for page in gallery.rglob("*.html"):
        markup = Markup(page)
        policies = [v["content"] for _, v in markup.tags if "http-equiv" in v]
        assert len(policies) == 1
        assert policies[0].startswith("default-src 'none'")
        assert "unsafe" not in policies[0]
        for tag, values in markup.tags:
            assert tag != "style"
            assert tag != "script" or values["src"]
            assert not [name for name in values if name.startswith("on") or name == "style"]
        assert not [link for link in markup.links() if ":" in link or link.startswith("/")]


def check_pictures(gallery: Path) -> None:
    """Every picture has its size and a text, and every id is given once."""
    for page in gallery.rglob("*.html"):
        markup = Markup(page)
        for values in markup.all("img"):
            size = Image.open(page.parent / values["src"]).size
            assert size == (int(values["width"]), int(values["height"]))
            assert values["alt"]
        for values in markup.all("svg"):
            if "aria-hidden" not in values:
                assert values["role"] == "img"
                assert values["aria-label"]
        ids = [values["id"] for _, values in markup.tags if "id" in values]
        assert len(ids) == len(set(ids))
