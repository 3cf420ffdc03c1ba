"""The first page: the run at a glance, what is not complete, and every layer of every scan with a
few of its features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from zfscale.gallery.pages import Page
from zfscale.gallery.site import OVERVIEW, Feature, LayerView, ScanView, Site
from zfscale.runs.results import Results
from zfscale.runs.summary import count_images

SAMPLES = 8


def count(site: Site) -> int:  # noqa: ARG001
    """One page, whatever there is."""
    return 1


def pages(site: Site) -> Iterator[Page]:
    """One page, index.html. The images at a glance are those of the first scan."""
    scan = site.scan
    values = {
        "images": None if scan is None else count_images(scan.analysis.dataset("images")),
        "features": {each.name: sum(len(x.features) for x in each.layers) for each in site.scans},
        "dead": {each.name: _dead(each) for each in site.scans},
        "samples": {x.address: samples(x) for each in site.scans for x in each.layers},
        "details": json.dumps(_details(site.results), indent=2, ensure_ascii=False),
    }
    yield Page(OVERVIEW, "index.html", values)


def _dead(scan: ScanView) -> int:
    return sum(feature.dead for layer in scan.layers for feature in layer.features)


def samples(layer: LayerView) -> list[Feature]:
    """A few features for the overview: the most selective living ones, else the first."""
    living = [feature for feature in layer.features if feature.winners and not feature.dead]
    chosen = sorted(living, key=lambda feature: -(feature.selectivity or 0.0))[:SAMPLES]
    return sorted(chosen, key=lambda feature: feature.number)


def _details(results: Results) -> dict[str, Any]:
    """What of run.json a reader may ask for: not the long lists of files and names."""
    record = results.record
    details = {"run": results.run, "run_id": record.run_id, "created": record.created}
    return {**details, **record.metadata, "fingerprint": record.fingerprint}
