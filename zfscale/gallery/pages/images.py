"""A page for each image that is shown whole: what the network took it for, and the features that it
is one of the winners of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from zfscale.gallery.pages import Page, with_neighbours
from zfscale.gallery.site import LayerView, ShownImage, Site, Win


@dataclass(frozen=True)
class LayerWins:
    """What an image won in one layer, the best rank first."""

    layer: LayerView
    wins: tuple[Win, ...]


def count(site: Site) -> int:
    """One page an image."""
    return len(site.images)


def pages(site: Site) -> Iterator[Page]:
    """images/ID.html beside the picture of the image, chained in the order of the files."""
    for before, image, after in with_neighbours(site.images.values()):
        values = {
            "image": image,
            "layers": _by_layer(image),
            "padding": "rgb({},{},{})".format(*site.results.preprocessing.mean_colour),
            "previous": before,
            "next": after,
        }
        yield Page(site.image_page(image.id), "image.html", values)


def _by_layer(image: ShownImage) -> list[LayerWins]:
    return [
        LayerWins(wins[0].layer, tuple(sorted(wins, key=lambda win: win.winner.rank)))
        for wins in (list(group) for _, group in groupby(image.wins, lambda win: win.layer.address))
    ]
