"""The driver: take the analyses of a job in turn, hand out their tasks, commit, publish.

Knows the ledger and any executor; computes nothing and reads no image. What it holds grows with
features x (k + classes) and with the number of tasks, not with the number of images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from zfscale.engine import fingerprint
from zfscale.engine.events import (
    Finished,
    Level,
    Note,
    Progressed,
    Report,
    StageBegun,
    StageDone,
    Summary,
)
from zfscale.engine.publish import publish
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.view import AnalysisView, Collection
from zfscale.engine.worker import Executor, load_network
from zfscale.errors import (
    IntegrityError,
    NonFiniteActivations,
    TaskFailed,
    UsageError,
    ZfscaleError,
)
from zfscale.records import Counts, Failure, ImageList, ImageRange, Receipt, Task
from zfscale.runs import manifest as manifests
from zfscale.runs import record
from zfscale.runs.ledger import Ledger, Planned
from zfscale.runs.manifest import State
from zfscale.runs.summary import count_images
from zfscale.runs.tables import dataset_of
from zfscale.runs.verify import Damage, find_damage
from zfscale.storage import open_storage
from zfscale.storage.base import Storage

COMMIT_SECONDS = 1.0
"""Receipts wait this long for others before they are committed together."""
COMMIT_SHARE = 0.05
"""Part of the time that commits may take: where they are slow they come more rarely."""
NON_FINITE_LIMIT = 0.01
"""Images with NaN or Inf activations, as a fraction, beyond which the weights are to blame."""


def run(job: ResolvedJob, executor: Callable[[ResolvedJob], Executor], report: Report) -> Summary:
    """Carry out a job, or what is left of it, and publish its results.

    `executor` is called only if there is work. Raises the ZfscaleError that stops the job;
    everything finished before is committed and will not be done again.
    """
    began = time.monotonic()
    storage = open_storage(job.run)
    views = _views(job, storage)
    ledger = _open(job, views, storage, report)
    damage = find_damage(storage, ledger.manifest, _with_dependencies(job, ledger))
    workers = _Workers(job, executor)
    try:
        for view in views:
            with _recorded(ledger, view.stage.name):
                _carry_out(view, ledger, damage, workers, report)
    finally:
        workers.close()
    summary = _summary(job, ledger, time.monotonic() - began)
    report(Finished(summary))
    return summary


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


def _open(
    job: ResolvedJob, views: Sequence[AnalysisView], storage: Storage, report: Report
) -> Ledger:
    planned = {view.stage.name: _planned(view) for view in views}
    network = views[0].network
    ledger = Ledger.open(
        storage,
        fingerprint.fingerprint(job, network),
        planned,
        fingerprint.described(job, network),
        job.replaced,
        job.command,
    )
    for text in ledger.warnings:
        report(Note(text, Level.WARNING))
    return ledger


def _planned(view: AnalysisView) -> Planned:
    analysis, stage = view.stage.analysis, view.stage
    options = analysis.options.model_dump(mode="json", by_alias=True)
    return Planned(stage.kind, options, stage.files, stage.needs, view.metadata, analysis.fixed)


def _with_dependencies(job: ResolvedJob, ledger: Ledger) -> set[str]:
    """The analyses of the job, and those that they rest on."""
    names, left = set(), [stage.name for stage in job.stages]
    while left:
        name = left.pop()
        if name not in names and name in ledger.manifest.analyses:
            names.add(name)
            left += ledger.manifest.analyses[name].needs.values()
    return names


class _Workers:
    """An executor that starts when the first task needs it."""

    def __init__(self, job: ResolvedJob, start: Callable[[ResolvedJob], Executor]) -> None:
        self._job, self._start = job, start
        self._executor: Executor | None = None

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        if self._executor is None:
            self._executor = self._start(self._job)
        return self._executor.execute(tasks)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()


@contextmanager
def _recorded(ledger: Ledger, name: str) -> Iterator[None]:
    """Commit what ends the work on an analysis before it is complete."""
    began = time.monotonic()
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        state = State.INTERRUPTED if interrupted else State.FAILED
        reason = None if interrupted else str(error) or type(error).__name__
        try:
            ledger.end(name, state, time.monotonic() - began, reason)
        except (ZfscaleError, OSError) as second:  # what stopped the work tells more
            error.add_note(f"and how it ended could not be recorded: {second}")
        raise


class _Plan:
    """The tasks of an analysis, as it plans them now.

    A plan may be a stream that is made anew each time it is gone through: then no more than the
    tasks in flight are held.
    """

    def __init__(self, view: AnalysisView) -> None:
        self._view = view
        planned = view.stage.analysis.plan(view)
        self._listed = planned if isinstance(planned, Sequence) else None
        self.tasks_left = self.images = self.images_left = 0
        self.counts = Counts()
        """How the images of the committed tasks ended."""
        done, state = view.done, view.state
        for task in self:
            self.images += _images(task)
            if task.id in done:
                self.counts += state.receipt(task.id).counts
            else:
                self.tasks_left += 1
                self.images_left += task.size

    def __iter__(self) -> Iterator[Task]:
        return iter(self._view.stage.analysis.plan(self._view) if self._listed is None
                    else self._listed)  # fmt: skip

    def left(self) -> Iterator[Task]:
        """The tasks that are not committed yet, once each."""
        done = self._view.done
        return (task for task in self if task.id not in done)


def _carry_out(
    view: AnalysisView,
    ledger: Ledger,
    damage: list[Damage],
    workers: _Workers,
    report: Report,
) -> None:
    """Plan and execute until nothing new is planned, then publish."""
    name, began = view.stage.name, time.monotonic()
    view.manifest = ledger.manifest
    inputs = _inputs(view, ledger, damage)
    own = [each for each in damage if each.analysis == name]
    for each in own:
        report(Note(f"{each}: it is made again", Level.WARNING))
    if _is_complete(view, inputs) and not own:
        return
    # A damaged file is as good as work that was never done.
    view.lost = {each.task for each in own if each.task is not None}
    ledger.start(name, inputs)
    started = ledger.manifest.analyses[name]
    plan = _planned_anew(view, ledger, report)
    while plan.tasks_left:
        report(StageBegun(name, plan.tasks_left, plan.images_left))
        _execute(view, plan, ledger, workers, report)
        plan = _planned_anew(view, ledger, report)
    publish(ledger, view, plan, {each.file.path for each in own if each.task is None})
    damage[:] = [each for each in damage if each not in own]
    _report_warnings(view, report)
    if plan.counts.quarantined and not view.stage.analysis.scans_dataset:
        left_out = f"{name} leaves out {plan.counts.quarantined} of {plan.counts.images} images"
        report(Note(f"{left_out}: what the network makes of them is not finite", Level.WARNING))
    seconds = time.monotonic() - began
    unchanged = ledger.manifest.analyses[name] is started
    ledger.end(name, State.COMPLETE, started.seconds if unchanged else seconds)
    report(StageDone(name, seconds, plan.counts))


def _is_complete(view: AnalysisView, inputs: Mapping[str, str]) -> bool:
    """Whether nothing can be left to do: not where an analysis looks at the world outside."""
    state = view.state
    done = state.state == State.COMPLETE and state.results is not None
    return done and bool(view.stage.needs) and state.inputs == inputs


def _planned_anew(view: AnalysisView, ledger: Ledger, report: Report) -> _Plan:
    view.manifest = ledger.manifest
    plan = _Plan(view)
    _report_warnings(view, report)
    _check_finite(plan.counts, plan.images)
    return plan


def _report_warnings(view: AnalysisView, report: Report) -> None:
    """Report the warnings of an analysis, each once."""
    while view.warnings:
        report(Note(view.warnings.pop(0), Level.WARNING))


def _inputs(view: AnalysisView, ledger: Ledger, damage: Sequence[Damage]) -> dict[str, str]:
    """The results that an analysis works on. Raises where they are not there, or not whole."""
    inputs = {}
    for needed in view.stage.needs.values():
        state = ledger.manifest.analyses[needed]
        broken = [each for each in damage if each.analysis == needed]
        if broken:
            raise IntegrityError(
                f"{view.stage.name} works on the results of {needed}, of which {len(broken)} "
                f"files are damaged or missing, e.g. {broken[0]}. Run a job with {needed} again: "
                "it makes them anew"
            )
        if state.results is None or ledger.manifest.is_outdated(needed):
            how = "is outdated" if state.results is not None else f"is {state.state}"
            raise UsageError(
                f"{view.stage.name} works on the results of {needed}, which {how}: run the job of "
                f"{needed} to its end first, or name it in this job before {view.stage.name}"
            )
        inputs[needed] = state.results
    return inputs


def _execute(
    view: AnalysisView, plan: _Plan, ledger: Ledger, workers: _Workers, report: Report
) -> None:
    """Hand out what is left of a plan; commit receipts in groups, also when interrupted.

    Raises TaskFailed at the end if some tasks have used up their attempts.
    """
    name, began = view.stage.name, time.monotonic()
    failures: list[Failure] = []
    waiting: list[Receipt] = []
    handed_out: dict[str, Task] = {}
    done, done_images, counts = 0, 0, Counts()
    due = began + COMMIT_SECONDS

    def tasks() -> Iterator[Task]:
        for task in plan.left():
            handed_out[task.id] = task
            yield task

    try:
        for result in workers.execute(tasks()):
            task = handed_out.pop(result.task)
            if isinstance(result, Failure):
                failures.append(result)
                report(Note(f"{task} failed: {result.error}", Level.ERROR))
                continue
            _check_complete(task, result)
            for text in result.warnings:
                report(Note(text, Level.WARNING))
            waiting.append(result)
            done, done_images = done + 1, done_images + task.size
            counts += result.counts
            _check_finite(plan.counts + counts, plan.images)
            now = time.monotonic()
            report(Progressed(name, done, done_images, counts, now - began))
            if now >= due:
                _commit(view, ledger, waiting)
                waiting = []
                spent = time.monotonic() - now
                due = time.monotonic() + max(COMMIT_SECONDS, spent / COMMIT_SHARE)
    finally:
        _commit(view, ledger, waiting)
    if failures:
        raise TaskFailed(_failure_message(name, failures, done))


def _commit(view: AnalysisView, ledger: Ledger, receipts: Sequence[Receipt]) -> None:
    if receipts:
        ledger.commit(view.stage.name, receipts)
        view.lost -= {receipt.task for receipt in receipts}


def _failure_message(name: str, failures: Sequence[Failure], done: int) -> str:
    """What failed, what did not, and how to go on."""
    first = failures[0]
    rest = f"the other {done} are committed" if done else "none was finished"
    return (
        f"{name}: {len(failures)} of {len(failures) + done} tasks failed, e.g. {first.task} after "
        f"{first.attempts} attempts: {first.error}; {rest}, and the same command tries again what "
        "failed"
    )


def _images(task: Task) -> int:
    """Images that a task accounts for."""
    return task.size if isinstance(task.images, ImageRange | ImageList) else 0


def _check_complete(task: Task, receipt: Receipt) -> None:
    """Every image of a task must have ended somehow."""
    if receipt.counts.images != _images(task):
        raise IntegrityError(
            f"{task} was to account for {_images(task)} images and its receipt has "
            f"{receipt.counts.images}: the analysis must use up its batches"
        )


def _check_finite(counts: Counts, images: int) -> None:
    if counts.non_finite > max(1, NON_FINITE_LIMIT * images):  # one image is no evidence
        raise NonFiniteActivations(
            f"{counts.non_finite} of {counts.images} images so far gave NaN or Inf activations, "
            f"more than {NON_FINITE_LIMIT:.0%} of {images}: check the weights and the "
            "preprocessing of the model"
        )


def _summary(job: ResolvedJob, ledger: Ledger, seconds: float) -> Summary:
    """Counts and errors of the scan that the job made or worked on.

    Without one, the counts of what else went over the whole collection.
    """
    states = ledger.manifest.analyses
    names = [name for name in _with_dependencies(job, ledger) if "images" in states[name].metadata]
    if not names:
        over_all = [s.name for s in job.stages if s.analysis.scans_dataset]
        return Summary(job.run, states[over_all[0]].counts if over_all else Counts(), seconds)
    own = [stage.name for stage in job.stages if stage.name in names]
    state = states[own[0] if own else min(names)]
    paths = [file.path for file in state.published.values() if file.table == "images"]
    if not paths:
        return Summary(job.run, state.counts, seconds)
    images = count_images(dataset_of(ledger.storage, paths))
    return Summary(job.run, state.counts, seconds, images.top1, images.top5)
