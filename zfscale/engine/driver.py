"""The driver: plan the passes of a job, hand out tasks, commit receipts, publish tables.

Knows the ledger and any executor; computes nothing and reads no image. What it holds grows
with features x (k + classes) and with the number of tasks; an image costs it the 24 bytes by
which copies are found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from zfscale.analyses import Pass
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
from zfscale.engine.view import RunView
from zfscale.engine.worker import Executor, Setup, passes
from zfscale.errors import (
    IntegrityError,
    NonFiniteActivations,
    TaskFailed,
    UnsupportedOperation,
    UsageError,
)
from zfscale.records import Counts, Failure, Receipt, Task

COMMIT_SECONDS = 1.0
"""Receipts wait this long for others before they are committed together."""
COMMIT_SHARE = 0.05
"""Part of the time that commits may take: where they are slow they come more rarely."""
NON_FINITE_LIMIT = 0.01
"""Images with NaN or Inf activations, as a fraction, beyond which the weights are to blame."""


def run(setup: Setup, executor: Callable[[Setup], Executor], report: Report) -> Summary:
    """Carry out a job, or what is left of it, and publish its results.

    `executor` is called only if there is work. Raises the ZfscaleError that stops the job;
    everything finished before is committed and will not be done again.
    """
    began = time.monotonic()
    view = RunView(setup)
    _tell(view, report)
    workers = _Workers(setup, executor)
    steps = passes(setup.job).values()
    try:
        for step in steps:
            step.check(view)  # what cannot be done is told before hours of work
        for step in steps:
            _carry_out(step, view, workers, report)
    except (UsageError, UnsupportedOperation):
        view.refuse()  # a mistake in a job takes nothing away from a complete run
        raise
    finally:
        workers.close()
    total = view.complete()
    top1, top5 = view.classification_error()
    summary = Summary(setup.job.run, total, time.monotonic() - began, top1, top5)
    report(Finished(summary))
    return summary


class _Workers:
    """An executor that starts when the first task needs it."""

    def __init__(self, setup: Setup, start: Callable[[Setup], Executor]) -> None:
        self._setup, self._start = setup, start
        self._executor: Executor | None = None

    def execute(self, tasks: Sequence[Task]) -> Iterator[Receipt | Failure]:
        if self._executor is None:
            self._executor = self._start(self._setup)
        return self._executor.execute(tasks)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()


def _tell(view: RunView, report: Report) -> None:
    """Report what the view has to tell, each note once."""
    while view.notes:
        report(Note(view.notes.pop(0), Level.WARNING))


def _carry_out(step: Pass, view: RunView, workers: _Workers, report: Report) -> None:
    """Plan and execute until nothing new is planned, then publish."""
    missing = [name for name in step.needs if not view.has_published(name)]
    if missing:
        raise UsageError(
            f"analyses: {step.name} works on the results of {missing[0]}, which {view.job.run} "
            f"does not hold; name the analysis that gives them before {step.name}"
        )
    began = time.monotonic()
    failures: list[Failure] = []
    while not failures:
        tasks = step.plan(view)
        _tell(view, report)
        committed = view.committed
        _check_finite(view.counts([task for task in tasks if task.id in committed]), tasks)
        left = [task for task in tasks if task.id not in committed]
        if not left:
            break
        report(StageBegun(step.name, len(left), sum(task.size for task in left)))
        failures = _execute(step.name, tasks, left, view, workers, report)
    if failures:
        raise TaskFailed(
            f"{step.name}: {len(failures)} of {len(tasks)} tasks failed, e.g. {failures[0].task} "
            f"after {failures[0].attempts} attempts: {failures[0].error}; the others are "
            "committed, and the same command tries these again"
        )
    view.publish(step, tasks)
    counts = view.counts(tasks)
    if counts.quarantined and not step.over_collection:
        left_out = f"{step.name} leaves out {counts.quarantined} of {counts.images} images"
        report(Note(f"{left_out}: what the network makes of them is not finite", Level.WARNING))
    report(StageDone(step.name, time.monotonic() - began, counts))


def _execute(
    stage: str,
    plan: Sequence[Task],
    left: Sequence[Task],
    view: RunView,
    workers: _Workers,
    report: Report,
) -> list[Failure]:
    """Hand out what is left of a plan; commit receipts in groups, also when interrupted."""
    began = time.monotonic()
    by_id = {task.id: task for task in left}
    before = view.counts([task for task in plan if task.id not in by_id])
    failures: list[Failure] = []
    waiting: list[Receipt] = []
    done, done_images, counts = 0, 0, Counts()
    due = began + COMMIT_SECONDS
    try:
        for result in workers.execute(left):
            if isinstance(result, Failure):
                failures.append(result)
                report(Note(f"{result.task} failed: {result.error}", Level.ERROR))
                continue
            _check_complete(by_id[result.task], result)
            waiting.append(result)
            done, done_images = done + 1, done_images + by_id[result.task].size
            counts += result.counts
            _check_finite(before + counts, plan)
            now = time.monotonic()
            report(Progressed(stage, done, done_images, counts, now - began))
            if now >= due:
                view.commit(waiting)
                waiting = []
                spent = time.monotonic() - now
                due = time.monotonic() + max(COMMIT_SECONDS, spent / COMMIT_SHARE)
    finally:
        if waiting:
            view.commit(waiting)
    return failures


def _check_complete(task: Task, receipt: Receipt) -> None:
    """Every image of a task must have ended somehow."""
    if task.images is not None and receipt.counts.images != task.size:
        raise IntegrityError(
            f"task {task.id} was to account for {task.size} images and its receipt has "
            f"{receipt.counts.images}: the analysis must use up its batches"
        )


def _check_finite(counts: Counts, plan: Sequence[Task]) -> None:
    total = sum(task.size for task in plan)
    if counts.non_finite > max(1, NON_FINITE_LIMIT * total):  # one image is no evidence
        raise NonFiniteActivations(
            f"{counts.non_finite} of {counts.images} images so far gave NaN or Inf activations, "
            f"more than {NON_FINITE_LIMIT:.0%} of {total}: check the weights and the "
            "preprocessing of the model"
        )
