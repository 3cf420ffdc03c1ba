"""What a run holds, analysis by analysis, in a few lines: for `zfscale show` and other readers."""

from __future__ import annotations

from dataclasses import dataclass

from zfscale.records import Counts
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
