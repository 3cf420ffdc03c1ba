"""A run as a job finds it: opened for writing, checked, with what each analysis sees of it.

Whatever makes a job impossible is told here, before anything is written or computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zfscale.engine import fingerprint
from zfscale.engine.events import Level, Note, Report
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.view import AnalysisView, Collection
from zfscale.engine.worker import load_network
from zfscale.runs import manifest as manifests
from zfscale.runs import record
from zfscale.runs.ledger import Ledger, Planned
from zfscale.runs.verify import Damage, find_damage
from zfscale.storage import open_storage
from zfscale.storage.base import Storage


@dataclass(frozen=True)
class OpenRun:
    """A run that one job writes to.

    `views` are those of the analyses of the job, in their order. `damage` are files that are not
    what they were, of these analyses and of those that they rest on; what is made again is taken
    out.
    """

    ledger: Ledger
    views: Sequence[AnalysisView]
    damage: list[Damage]


def open_run(job: ResolvedJob, report: Report) -> OpenRun:
    """Open the run of a job, and commit which analyses it wants.

    Raises the error of an analysis that cannot be done, FingerprintMismatch where the run was
    begun with other settings, and IntegrityError where no manifest of it is valid.
    """
    storage = open_storage(job.run)
    views = _views(job, storage)
    network = views[0].network
    ledger = Ledger.open(
        storage,
        fingerprint.fingerprint(job, network),
        {view.stage.name: _planned(view) for view in views},
        fingerprint.described(job, network),
        job.replaced,
        job.command,
    )
    for text in ledger.warnings:
        report(Note(text, Level.WARNING))
    concerned = ledger.manifest.with_dependencies(view.stage.name for view in views)
    return OpenRun(ledger, views, find_damage(storage, ledger.manifest, concerned))


def _views(job: ResolvedJob, storage: Storage) -> list[AnalysisView]:
    """What each analysis of the job sees, after they have looked at the network and agreed.

    What cannot be done is told before hours of work, and before anything is written.
    """
    network, images = load_network(job, "cpu"), Collection(job)
    known, _ = manifests.latest(storage)
    if known is None:
        record.check_unclaimed(storage, ("images", "features", "winners", "segments"))
    views = [AnalysisView(job, stage, network, storage, images) for stage in job.stages]
    for view in views:
        view.manifest = known
        view.metadata = view.stage.analysis.metadata(view)
        for other in views:
            other.set_metadata(view.stage.name, view.metadata)
    for view in views:
        view.stage.analysis.check(view)
    return views


def _planned(view: AnalysisView) -> Planned:
    analysis, stage = view.stage.analysis, view.stage
    options = analysis.options.model_dump(mode="json", by_alias=True)
    return Planned(
        stage.kind,
        options,
        stage.files,
        stage.needs,
        view.metadata,
        analysis.fixed,
        analysis.uses_network,
    )
