"""A page for each layer: every feature a cell, projections beside patches (paper, Figure 2)."""

from __future__ import annotations

from collections.abc import Iterator

from zfscale.gallery.pages import Page
from zfscale.gallery.site import LayerView, Site


def count(site: Site) -> int:
    """One page a layer."""
    return len(site.layers)


def pages(site: Site) -> Iterator[Page]:
    """layers/NAME.html for every layer, chained in the order of the network."""
    for layer, (before, after) in zip(site.layers, around(site.layers), strict=True):
        values = {"layer": layer, "previous": before, "next": after}
        yield Page(layer.address, "layer.html", values)


def around(
    layers: tuple[LayerView, ...],
) -> list[tuple[LayerView | None, LayerView | None]]:
    """For each layer the one before and the one after it."""
    chain = [None, *layers, None]
    return list(zip(chain[:-2], chain[2:], strict=True))
