"""Jobs on a cluster: `zfscale submit`, `status`, `logs`, `stop` and `list`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zfscale.cli.run import sets
from zfscale.errors import UsageError

if TYPE_CHECKING:
    from zfscale.cluster.submit import JobState


def on_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --address and --insecure, and with them a connected client."""

    @click.option(
        "--address", required=True, metavar="URL", help="Ray dashboard, e.g. http://127.0.0.1:8265"
    )
    @click.option(
        "--insecure", is_flag=True, help="Use a remote cluster without a token of its own."
    )
    @wraps(command)
    def connected(address: str, insecure: bool, **options: Any) -> None:
        from zfscale.cluster import submit

        command(submit.connect(address, insecure), **options)

    return connected


@click.command()
@click.argument("job_file", metavar="JOB.yaml")
@sets
@click.option("--wait", is_flag=True, help="Show its log, and end as it ends.")
@on_cluster
def submit(client: Any, job_file: str, overrides: tuple[str, ...], wait: bool) -> None:
    """Start a job on a cluster, and print its id."""
    from zfscale.cluster import submit as cluster

    try:
        text = Path(job_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{job_file}: cannot read the job file: {error}") from error
    submission = cluster.submit(client, text, overrides, job_file)
    click.echo(submission)
    if wait:
        state = cluster.follow(client, submission, _show)
        _describe(state)
        raise click.exceptions.Exit(_code(state))


@click.command()
@click.argument("job_id", metavar="ID")
@on_cluster
def status(client: Any, job_id: str) -> None:
    """Print how a job stands."""
    from zfscale.cluster import submit

    _describe(submit.state(client, job_id))


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", is_flag=True, help="Go on until the job ends.")
@on_cluster
def logs(client: Any, job_id: str, follow: bool) -> None:
    """Print what a job has printed."""
    from zfscale.cluster import submit

    if follow:
        submit.follow(client, job_id, _show)
    else:
        _show(submit.logs(client, job_id))


@click.command()
@click.argument("job_id", metavar="ID")
@on_cluster
def stop(client: Any, job_id: str) -> None:
    """Stop a job; the same job file goes on with it."""
    from zfscale.cluster import submit

    click.echo("stopping" if submit.stop(client, job_id) else "it had ended before")


@click.command("list")
@on_cluster
def list_(client: Any) -> None:
    """Print the jobs that the cluster remembers, oldest first."""
    from zfscale.cluster import submit

    for state in submit.jobs(client):
        _describe(state)


def _show(text: str) -> None:
    click.echo(text, nl=False)


def _describe(state: JobState) -> None:
    started = state.started.isoformat(timespec="seconds") if state.started else "not started"
    code = "" if state.exit_code is None else f"  exit code {state.exit_code}"
    click.echo(f"{state.id}  {state.status}  {started}{code}  {state.message}".rstrip())


def _code(state: JobState) -> int:
    """The exit code of the remote command, or 1 where the cluster does not know it."""
    if state.status == "SUCCEEDED":
        return 0
    return state.exit_code or 1


COMMANDS = (submit, status, logs, stop, list_)
