"""The first page: the run at a glance, and every layer with a few of its features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zfscale.gallery.pages import Page
from zfscale.gallery.site import Feature, LayerView, Site
from zfscale.records import Status
from zfscale.runs.results import Results

SAMPLES = 8


@dataclass(frozen=True)
class Images:
    """How the images of the run ended; errors in 0..1, None without labels."""

    ok: int
    quarantined: int
    duplicate: int
    reasons: dict[str, int]
    top1: float | None
    top5: float | None


def count(site: Site) -> int:  # noqa: ARG001
    """One page, whatever there is."""
    return 1


def pages(site: Site) -> Iterator[Page]:
    """One page, index.html."""
    values = {
        "images": count_images(site.results) if site.layers else None,
        "samples": {layer.slug: samples(layer) for layer in site.layers},
        "features": sum(len(layer.features) for layer in site.layers),
        "dead": sum(feature.dead for layer in site.layers for feature in layer.features),
        "details": json.dumps(_details(site.results), indent=2, ensure_ascii=False),
    }
    yield Page("index.html", "index.html", values)


def count_images(results: Results) -> Images:
    """Counts from `images`, read batch by batch: the table grows with the input."""
    status: dict[str, int] = {}
    reasons: dict[str, int] = {}
    ranked = wrong1 = wrong5 = 0
    columns = ["status", "reason", "true_class_rank"]
    for batch in results.dataset("images").to_batches(columns=columns):
        _add(status, batch["status"])
        _add(reasons, batch["reason"].drop_null())
        rank = batch["true_class_rank"].drop_null()
        ranked += len(rank)
        wrong1 += pc.sum(pc.greater_equal(rank, 1)).as_py() or 0
        wrong5 += pc.sum(pc.greater_equal(rank, 5)).as_py() or 0
    return Images(
        ok=status.get(Status.OK, 0),
        quarantined=status.get(Status.QUARANTINED, 0),
        duplicate=status.get(Status.DUPLICATE, 0),
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        top1=wrong1 / ranked if ranked else None,
        top5=wrong5 / ranked if ranked else None,
    )


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


def _add(counts: dict[str, int], values: pa.Array[Any]) -> None:
    for item in pc.value_counts(values).to_pylist():
        counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
