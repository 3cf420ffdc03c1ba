"""Jobs on a cluster: `zfscale submit`, `status`, `logs`, `stop` and `list`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zfscale.cli.run import job_command, replaces, sets
from zfscale.errors import UsageError

if TYPE_CHECKING:
    from zfscale.cluster.submit import JobState


def on_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options --address and --insecure, and call the command with a connected client."""

    @click.option(
        "--address", required=True, metavar="URL", help="Ray dashboard, e.g. http://127.0.0.1:8265"
    )
    @click.option("--insecure", is_flag=True, help="Use a remote cluster without a token.")
    @wraps(command)
    def connected(address: str, insecure: bool, **options: Any) -> None:
        from zfscale.cluster import submit

        command(submit.connect(address, insecure), **options)

    return connected


@click.command()
@click.argument("job_file", metavar="JOB.yaml")
@sets
@replaces
@click.option("--wait", is_flag=True, help="Show its log, and end with its exit code.")
@on_cluster
def submit(
    client: Any,
    job_file: str,
    overrides: tuple[str, ...],
    replaced: tuple[str, ...],
    wait: bool,
) -> None:
    """Start a job on a cluster, and print its id."""
    from zfscale.cluster import submit as cluster

    try:
        text = Path(job_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{job_file}: cannot read the job file: {error}") from error
    given = click.get_current_context().params
    options = ["--address", given["address"]]
    options += [f"--{name}" for name in ("insecure", "wait") if given[name]]
    resume_with = job_command("submit", job_file, overrides, options)
    submission = cluster.submit(client, text, overrides, job_file, replaced, resume_with)
    click.echo(submission)
    if wait:
        state = cluster.follow(client, submission, _print_log)
        _print_state(state)
        raise click.exceptions.Exit(_exit_code(state))


@click.command()
@click.argument("job_id", metavar="ID")
@on_cluster
def status(client: Any, job_id: str) -> None:
    """Print the state of a job."""
    from zfscale.cluster import submit

    _print_state(submit.state(client, job_id))


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", is_flag=True, help="Keep printing until the job ends.")
@on_cluster
def logs(client: Any, job_id: str, follow: bool) -> None:
    """Print the log of a job."""
    from zfscale.cluster import submit

    if follow:
        submit.follow(client, job_id, _print_log)
    else:
        _print_log(submit.logs(client, job_id))


@click.command()
@click.argument("job_id", metavar="ID")
@on_cluster
def stop(client: Any, job_id: str) -> None:
    """Stop a job; submitting the same job file again resumes it."""
    from zfscale.cluster import submit

    click.echo("stopping" if submit.stop(client, job_id) else f"{job_id} had ended before")


@click.command("list")
@on_cluster
def list_(client: Any) -> None:
    """Print the jobs that the cluster remembers, oldest first."""
    from zfscale.cluster import submit

    for state in submit.jobs(client):
        _print_state(state)


def _print_log(text: str) -> None:
    click.echo(text, nl=False)


def _print_state(state: JobState) -> None:
    started = state.started.isoformat(timespec="seconds") if state.started else "not started"
    code = "" if state.exit_code is None else f"  exit code {state.exit_code}"
    click.echo(f"{state.id}  {state.status}  {started}{code}  {state.message}".rstrip())


def _exit_code(state: JobState) -> int:
    """The exit code of the remote command, or 1 if the cluster does not know it."""
    if state.status == "SUCCEEDED":
        return 0
    return state.exit_code or 1


COMMANDS = (submit, status, logs, stop, list_)
