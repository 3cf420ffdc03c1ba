"""The tasks of one analysis: which are left, handed out to workers, and committed as they end.

Knows the ledger and any executor; not in which order analyses come, nor what becomes of results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from zfscale.engine.events import Level, Note, Progressed, Report
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.view import AnalysisView
from zfscale.engine.worker import Executor
from zfscale.errors import IntegrityError, NonFiniteActivations, TaskFailed
from zfscale.records import Counts, Failure, Receipt, Task
from zfscale.runs.ledger import Ledger

COMMIT_SECONDS = 1.0
"""Receipts wait this long for others before they are committed together."""
COMMIT_SHARE = 0.05
"""Part of the time that commits may take: where they are slow they come more rarely."""
NON_FINITE_LIMIT = 0.01
"""Images with NaN or Inf activations, as a fraction, beyond which the weights are to blame."""


class Workers:
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


class Plan:
    """The tasks of an analysis, as it plans them now.

    A plan may be a stream that is made anew each time it is gone through: then no more than the
    tasks in flight are held.
    """

    def __init__(self, view: AnalysisView) -> None:
        self.view = view
        planned = view.stage.analysis.plan(view)
        self._listed = planned if isinstance(planned, Sequence) else None
        self.tasks_left = self.images = self.images_left = 0
        self.counts = Counts()
        """How the images of the committed tasks ended."""
        done, state = view.done, view.state
        for task in self:
            self.images += task.image_count
            if task.id in done:
                self.counts += state.receipt(task.id).counts
            else:
                self.tasks_left += 1
                self.images_left += task.image_count

    def __iter__(self) -> Iterator[Task]:
        return iter(self.view.stage.analysis.plan(self.view) if self._listed is None
                    else self._listed)  # fmt: skip

    def left(self) -> Iterator[Task]:
        """The tasks that are not committed yet, once each."""
        done = self.view.done
        return (task for task in self if task.id not in done)


def plan_tasks(view: AnalysisView, ledger: Ledger, report: Report) -> Plan:
    """Plan in view of what is committed now, and report what the analysis warns of.

    Raises NonFiniteActivations if the committed tasks put the blame on the weights.
    """
    view.manifest = ledger.manifest
    plan = Plan(view)
    view.report_warnings(report)
    _check_finite(plan.counts, plan.images)
    return plan


def execute(plan: Plan, ledger: Ledger, workers: Workers, report: Report) -> None:
    """Hand out what is left of a plan; commit receipts in groups, also when interrupted.

    Raises TaskFailed at the end if some tasks have used up their attempts.
    """
    view, name, began = plan.view, plan.view.stage.name, time.monotonic()
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
            done, done_images = done + 1, done_images + task.image_count
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


def _check_complete(task: Task, receipt: Receipt) -> None:
    """Every image of a task must have ended somehow."""
    if receipt.counts.images != task.image_count:
        raise IntegrityError(
            f"{task} was to account for {task.image_count} images and its receipt has "
            f"{receipt.counts.images}: the analysis must use up its batches"
        )


def _check_finite(counts: Counts, images: int) -> None:
    if counts.non_finite > max(1, NON_FINITE_LIMIT * images):  # one image is no evidence
        raise NonFiniteActivations(
            f"{counts.non_finite} of {counts.images} images so far gave NaN or Inf activations, "
            f"more than {NON_FINITE_LIMIT:.0%} of {images}: check the weights and the "
            "preprocessing of the model"
        )
