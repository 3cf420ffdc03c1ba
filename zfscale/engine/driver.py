"""The driver: take the analyses of a job in turn, hand out their tasks, commit, publish.

Knows the ledger and any executor; computes nothing and reads no image. What it holds grows with
features x (k + classes) and with the number of tasks, not with the number of images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from zfscale.engine.events import Finished, Level, Note, Report, StageBegun, StageDone, Summary
from zfscale.engine.execution import Workers, execute, plan_tasks
from zfscale.engine.opening import OpenRun, open_run
from zfscale.engine.publish import publish
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.view import AnalysisView
from zfscale.engine.worker import Executor
from zfscale.errors import IntegrityError, UsageError, ZfscaleError
from zfscale.records import Counts
from zfscale.runs.ledger import Ledger
from zfscale.runs.manifest import State
from zfscale.runs.summary import count_images
from zfscale.runs.tables import dataset_of


def run(job: ResolvedJob, executor: Callable[[ResolvedJob], Executor], report: Report) -> Summary:
    """Carry out a job, or what is left of it, and publish its results.

    `executor` is called only if there is work. Raises the ZfscaleError that stops the job;
    everything finished before is committed and will not be done again.
    """
    began = time.monotonic()
    opened = open_run(job, report)
    workers = Workers(job, executor)
    try:
        for view in opened.views:
            with _recorded(opened.ledger, view.stage.name):
                _carry_out(view, opened, workers, report)
    finally:
        workers.close()
    _check_undamaged(opened)
    summary = _summary(job, opened.ledger, time.monotonic() - began)
    report(Finished(summary))
    return summary


@contextmanager
def _recorded(ledger: Ledger, name: str) -> Iterator[None]:
    """Commit what ends the work on an analysis before it is complete.

    One that was complete, and of which nothing was begun anew, stays so.
    """
    began, before = time.monotonic(), ledger.manifest.analyses[name]
    try:
        yield
    except BaseException as error:
        if before.state == State.COMPLETE and ledger.manifest.analyses[name] is before:
            raise
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        state = State.INTERRUPTED if interrupted else State.FAILED
        reason = None if interrupted else str(error) or type(error).__name__
        try:
            ledger.end(name, state, time.monotonic() - began, reason)
        except (ZfscaleError, OSError) as second:  # what stopped the work tells more
            error.add_note(f"and how it ended could not be recorded: {second}")
        raise


def _check_undamaged(opened: OpenRun) -> None:
    """Raise IntegrityError for damage that this job had no reason to mend."""
    if opened.damage:
        names = ", ".join(sorted({each.analysis for each in opened.damage}))
        raise IntegrityError(
            f"what this job asked for is done, but {len(opened.damage)} files of {names}, on which "
            f"it rests, are damaged or missing, e.g. {opened.damage[0]}. Run the job that made "
            "them again: it makes them anew"
        )


def _carry_out(view: AnalysisView, opened: OpenRun, workers: Workers, report: Report) -> None:
    """Plan and execute until nothing new is planned, then publish."""
    name, ledger, began = view.stage.name, opened.ledger, time.monotonic()
    view.manifest = ledger.manifest
    inputs = _inputs(view, opened)
    own = [each for each in opened.damage if each.analysis == name]
    for each in own:
        report(Note(f"{each}: it is made again", Level.WARNING))
    if _is_complete(view, inputs) and not own:
        return
    # A damaged file is as good as work that was never done.
    view.lost = {each.task for each in own if each.task is not None}
    ledger.start(name, inputs)
    started = ledger.manifest.analyses[name]
    plan = plan_tasks(view, ledger, report)
    while plan.tasks_left:
        report(StageBegun(name, plan.tasks_left, plan.images_left))
        execute(plan, ledger, workers, report)
        plan = plan_tasks(view, ledger, report)
    publish(ledger, view, plan, {each.file.path for each in own if each.task is None})
    opened.damage[:] = [each for each in opened.damage if each not in own]
    view.report_warnings(report)
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


def _inputs(view: AnalysisView, opened: OpenRun) -> dict[str, str]:
    """The results that an analysis works on. Raises where they are not there, or not whole."""
    inputs, manifest = {}, opened.ledger.manifest
    for needed in view.stage.needs.values():
        state = manifest.analyses[needed]
        broken = [each for each in opened.damage if each.analysis == needed]
        if broken:
            raise IntegrityError(
                f"{view.stage.name} works on the results of {needed}, of which {len(broken)} "
                f"files are damaged or missing, e.g. {broken[0]}. Run a job with {needed} again: "
                "it makes them anew"
            )
        if state.results is None or manifest.is_outdated(needed):
            how = "is outdated" if state.results is not None else f"is {state.state}"
            raise UsageError(
                f"{view.stage.name} works on the results of {needed}, which {how}: run the job of "
                f"{needed} to its end first, or name it in this job before {view.stage.name}"
            )
        inputs[needed] = state.results
    return inputs


def _summary(job: ResolvedJob, ledger: Ledger, seconds: float) -> Summary:
    """Counts and errors of the scan that the job made or worked on.

    Without one, the counts of what else went over the whole collection.
    """
    states = ledger.manifest.analyses
    concerned = ledger.manifest.with_dependencies(stage.name for stage in job.stages)
    names = [name for name in concerned if states[name].images]
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
