"""`zfscale run` and `zfscale train`: work in the foreground, with progress and a summary."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from zfscale.cli.exit import resumable
from zfscale.errors import OverBudget, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zfscale.engine.events import Summary
    from zfscale.engine.resolve import Machine, ResolvedJob
    from zfscale.engine.worker import Executor

sets = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Overrule a key of the job file by its dotted path; may be repeated.",
)  # fmt: skip

replaces = click.option(
    "--replace", "replaced", multiple=True, metavar="NAME",
    help="Drop the results of this analysis first; may be repeated.",
)  # fmt: skip


@click.command()
@click.argument("job_file", metavar="JOB.yaml")
@sets
@click.option("--address", metavar="A", help="Work on the Ray cluster there; auto finds it.")
@click.option("--serial", is_flag=True, help="Work in this process, without Ray.")
@click.option("--workers", type=int, metavar="N", help="The same as --set workers=N.")
@click.option(
    "--max-quarantined", type=float, metavar="F", help="The same as --set max_quarantined=F."
)
@replaces
@click.option("--json", "as_json", is_flag=True, help="Progress and summary as JSON lines.")
@click.option("--resume-with", hidden=True, help="The command that goes on with the job.")
def run(
    job_file: str,
    overrides: tuple[str, ...],
    address: str | None,
    serial: bool,
    replaced: tuple[str, ...],
    as_json: bool,
    resume_with: str | None,
    **shorthands: float | None,
) -> None:
    """Carry out a job, or what is left of it.

    By default on a Ray that lives inside this command and uses this machine.
    """
    from zfscale import job

    if serial and address is not None:
        raise UsageError("--serial and --address contradict each other: give one of them")
    # `workers` and `max_quarantined`
    overrides += tuple(f"{key}={value}" for key, value in shorthands.items() if value is not None)
    where = ["--serial"] if serial else [] if address is None else ["--address", address]
    command = resume_with or job_command("run", job_file, overrides, where)
    wanted = job.load(job_file, overrides)
    from zfscale.engine import driver, progress, resolve

    with resumable(command), progress.shown(sys.stderr, as_json) as report:
        machine = _machine_of(address) if address else resolve.local_machine
        resolved = resolve.resolve(wanted, machine, replaced, command)
        summary = driver.run(resolved, _executor(address, serial), report)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    else:
        click.echo("\n".join(lines(summary)))
    _check_budget(summary, resolved.max_quarantined)


def lines(summary: Summary) -> list[str]:
    """What a finished job says: counts that add up, errors of the classifier, what comes next."""
    from zfscale.engine.progress import duration

    counts = summary.counts
    done = f"{counts.ok:,} ok + {counts.quarantined:,} quarantined + {counts.duplicate:,} duplicate"
    text = [f"{counts.images:,} images in = {done}, in {duration(summary.seconds)}"]
    if summary.top1 is not None and summary.top5 is not None:
        text.append(f"top-1 error {summary.top1:.2%}, top-5 error {summary.top5:.2%}")
    return [
        *text,
        f"results in {summary.run}; next:",
        f"  zfscale gallery {summary.run}",
        f"  zfscale verify {summary.run}",
    ]


@click.command()
@click.argument("job_file", metavar="JOB.yaml")
@sets
def train(job_file: str, overrides: tuple[str, ...]) -> None:
    """Train a network from labelled images, as a job file says."""
    from zfscale.engine import training

    report = training.train(training.load(job_file, overrides), _tell)
    click.echo(
        f"{report.accuracy:.2%} of {report.held_out:,} held-out images right; "
        f"weights in {report.job.out}"
    )


def _tell(epoch: object) -> None:
    click.echo(json.dumps(asdict(epoch)), err=True)  # type: ignore[call-overload]


def job_command(
    command: str, job_file: str, overrides: Sequence[str], options: Sequence[str]
) -> str:
    """The command line that goes on with a job: without --replace, which would drop it again."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    return shlex.join(["zfscale", command, job_file, *sets, *options])


def _machine_of(address: str) -> Callable[[], Machine]:
    """The machine that plans may have no GPU and other cores than the cluster: ask the cluster."""
    from zfscale.cluster import resources

    return lambda: resources.machine(address)


def _executor(address: str | None, serial: bool) -> Callable[[ResolvedJob], Executor]:
    if serial:
        from zfscale.engine.worker import Serial

        return Serial
    from zfscale.cluster.pool import RayPool

    def pool(job: ResolvedJob) -> Executor:
        return RayPool(job, job.workers, address)

    return pool


def _check_budget(summary: Summary, max_quarantined: float) -> None:
    allowed = max_quarantined * summary.counts.images
    if summary.counts.quarantined > allowed:
        raise OverBudget(
            f"{summary.counts.quarantined:,} images were quarantined, more than the "
            f"{max_quarantined:.2%} that max_quarantined allows; the results are complete "
            f"without them, and {summary.run}/images says why each"
        )


COMMANDS = (run, train)
