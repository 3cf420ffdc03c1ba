"""What a run holds in a few lines: how far each analysis came, and how the images of a scan ended.

For `zfscale show`, the driver, the gallery and other readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from zfscale.records import Counts, Status
from zfscale.runs.manifest import Manifest, State


@dataclass(frozen=True, slots=True)
class AnalysisSummary:
    """One analysis. `state` is that of the manifest, or `outdated`. `size` counts the bytes of its
    final tables and arrays, `kept` those of all files of its tasks; `rows` the rows of its final
    tables; `seconds` the time of the last job that worked on it. `command` goes on with it where it
    is not complete.
    """

    name: str
    kind: str
    state: str
    tasks: int
    counts: Counts
    rows: int
    size: int
    kept: int
    seconds: float
    error: str | None
    command: str | None


def summarise(manifest: Manifest) -> list[AnalysisSummary]:
    """Every analysis of a run, in the order in which they were begun."""
    summaries = []
    for name, analysis in manifest.analyses.items():
        is_outdated = manifest.is_outdated(name)
        done = analysis.state == State.COMPLETE and not is_outdated
        receipts = list(analysis.receipts())
        final = analysis.published.values()
        summaries.append(
            AnalysisSummary(
                name=name,
                kind=analysis.kind,
                state="outdated" if is_outdated else analysis.state.value,
                tasks=len(receipts),
                counts=sum((receipt.counts for receipt in receipts), Counts())
                if analysis.results is None
                else analysis.counts,
                rows=sum(file.rows for file in final)
                or sum(file.rows for receipt in receipts for file in receipt.files),
                size=sum(file.size for file in final)
                + sum(f.size for each in receipts for f in each.files if f.table is None),
                kept=sum(file.size for receipt in receipts for file in receipt.files),
                seconds=analysis.seconds,
                error=analysis.error,
                command=None if done else analysis.command,
            )
        )
    return summaries


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """How the images of a scan ended.

    `reasons` counts those in quarantine by reason, the most common first. `top1` and `top5` are
    the errors of classification over the labelled images, 0..1; None where there are no labels.
    """

    ok: int
    quarantined: int
    duplicate: int
    reasons: Mapping[str, int]
    top1: float | None
    top5: float | None


def count_images(images: ds.Dataset) -> ImageSummary:
    """Counts from the table `images` of a scan, read batch by batch: it grows with the input."""
    status: dict[str, int] = {}
    reasons: dict[str, int] = {}
    labelled = wrong1 = wrong5 = 0
    for batch in images.to_batches(columns=["status", "reason", "true_class_rank"]):
        _add(status, batch["status"])
        _add(reasons, batch["reason"].drop_null())
        rank = batch["true_class_rank"].drop_null()
        labelled += len(rank)
        wrong1 += pc.sum(pc.greater_equal(rank, 1)).as_py() or 0
        wrong5 += pc.sum(pc.greater_equal(rank, 5)).as_py() or 0
    return ImageSummary(
        ok=status.get(Status.OK, 0),
        quarantined=status.get(Status.QUARANTINED, 0),
        duplicate=status.get(Status.DUPLICATE, 0),
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        top1=wrong1 / labelled if labelled else None,
        top5=wrong5 / labelled if labelled else None,
    )


def _add(counts: dict[str, int], values: pa.Array[Any]) -> None:
    for item in pc.value_counts(values).to_pylist():
        counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
