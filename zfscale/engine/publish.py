"""Final tables and arrays of an analysis, derived from its committed tasks.

Knows the stores; not how tasks are carried out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from zfscale.engine.view import AnalysisView
from zfscale.errors import FingerprintMismatch
from zfscale.records import Block, Counts, File, Task
from zfscale.runs import arrays, tables
from zfscale.runs.ledger import Ledger


def publish(
    ledger: Ledger, view: AnalysisView, tasks: Iterable[Task], damaged: Collection[str]
) -> None:
    """Publish what an analysis makes of its tasks, or nothing if that is there already.

    `damaged` are paths of published files that have to be written anew. Raises FingerprintMismatch
    if the results of an analysis that is `fixed` would change after others have used them.
    """
    name, analysis, state = view.stage.name, view.stage.analysis, view.state
    digest, counts = hashlib.sha256(), Counts()
    for receipt in (state.receipt(task.id) for task in tasks):
        digest.update("".join(file.sha256 for file in receipt.files).encode())
        counts += receipt.counts
    results = digest.hexdigest()
    rewritten = set(damaged) & set(state.published)
    if state.results == results and not rewritten:
        return
    if analysis.fixed and state.results is not None:
        _check_unused(ledger, name, state.results, results)
    ledger.withdraw(name)
    for path in rewritten:
        ledger.storage.delete(path)
    view.manifest = ledger.manifest
    written = _write(ledger, view, tasks)
    for table in {file.path.partition("/")[0] for file in written if file.table is not None}:
        tables.remove_stale(ledger.storage, table, written)
    ledger.publish(name, written, results, counts, analysis.metadata(view))


def _check_unused(ledger: Ledger, name: str, old: str, new: str) -> None:
    users = [
        other
        for other, state in ledger.manifest.analyses.items()
        if state.tasks and state.inputs.get(name) == old
    ]
    if old != new and users:
        raise FingerprintMismatch(
            f"images: they are others than those of {', '.join(users)} in {ledger.storage.url}: "
            "files were added, removed or changed since. Use a new run directory, put back what "
            f"was there, or drop the results with --replace {' --replace '.join(users)}"
        )


def _write(ledger: Ledger, view: AnalysisView, tasks: Iterable[Task]) -> list[File]:
    """Write the tables and arrays, in whatever order the analysis gives their rows and blocks."""
    analysis, stage = view.stage.analysis, view.stage
    described = [stage.located(array) for array in analysis.arrays(view)]
    receipts = (view.state.receipt(task.id) for task in tasks)
    blocks = {file.path for each in receipts for file in each.files if file.table is None}
    for store in {array.path.partition("/")[0] for array in described}:
        arrays.remove_stale(ledger.storage, store, blocks)
    files = {
        file.path: file for array in described for file in arrays.create(ledger.storage, array)
    }
    with tables.writing(ledger.storage, ledger.manifest.run_id, stage.published_as) as writer:
        for item in analysis.publish(view, tasks):
            if isinstance(item, Block):
                written = arrays.write(ledger.storage, stage.placed(item))
                files |= {file.path: file for file in written}
            else:
                writer.add(*item)
    return [*files.values(), *writer.files]
