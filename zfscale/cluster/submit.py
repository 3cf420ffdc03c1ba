"""A whole job sent to a cluster through Ray's job API, and what can be asked about it then.

Knows what travels: the job file by its hash, this package, the module of a model that lies in
the current directory, a fixed command line; no secrets.
Not what the job does: on the cluster it is an ordinary `zfscale run`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zfscale
from zfscale import analyses
from zfscale.cluster.session import ray_module
from zfscale.errors import UsageError
from zfscale.job import Job, parse

MARK = "zfscale_version"
"""Metadata by which our jobs are told from others of the cluster."""
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
POLL = 2.0
"""Seconds between questions while waiting."""

Client = Any
"""A `ray.job_submission.JobSubmissionClient`."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A submitted job. `exit_code` is that of `zfscale run`, None until it has ended."""

    id: str
    status: str
    message: str
    exit_code: int | None
    started: datetime | None
    ended: datetime | None

    @property
    def over(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self.status in TERMINAL


def connect(address: str, insecure: bool = False) -> Client:
    """A client of the job server at `address`, e.g. http://127.0.0.1:8265.

    Raises UsageError for an address that no password protects, one that the environment
    contradicts, or one that does not answer.
    """
    _check_address(address, insecure, os.environ)
    ray = ray_module()
    from ray.job_submission import JobSubmissionClient

    # Its modules log each upload, whatever level they inherit.
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(f"--address {address}: {error}") from error


def submit(client: Client, text: str, overrides: Sequence[str] = (), place: str = "job") -> str:
    """Start the job file `text` on the cluster and return the id of the submission.

    The job is checked here first: what it names must mean the same on every machine. The module
    of a model's factory goes along if it lies in the current directory.
    """
    job = parse(text, place, tuple(overrides))
    _check_paths(job, place)
    name = f"job-{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(text, encoding="utf-8")
        _add_module(job.model, Path(folder))
        # The directory and the package are uploaded here, each under the hash of its content.
        submission: str = client.submit_job(
            entrypoint=shlex.join(_command(name, overrides)),
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(Path(zfscale.__file__).parent)],
                "excludes": ["__pycache__"],
            },
            metadata={MARK: zfscale.__version__},
        )
    return submission


def state(client: Client, submission: str) -> JobState:
    """How a job stands."""
    with _known(submission):
        return _state(client.get_job_info(submission))


def jobs(client: Client) -> list[JobState]:
    """Our jobs that the cluster remembers, oldest first."""
    ours = [info for info in client.list_jobs() if MARK in (info.metadata or {})]
    return [_state(info) for info in sorted(ours, key=lambda info: info.start_time or 0)]


def stop(client: Client, submission: str) -> bool:
    """Ask a job to stop: it commits what is finished. False if it had ended before."""
    with _known(submission):
        return bool(client.stop_job(submission))


def logs(client: Client, submission: str) -> str:
    """What a job has printed so far."""
    with _known(submission):
        return str(client.get_job_logs(submission))


def follow(client: Client, submission: str, show: Callable[[str], None]) -> JobState:
    """Show what a job prints until it ends, and return how it ended."""

    async def tail() -> None:
        async for chunk in client.tail_job_logs(submission):
            show(chunk)

    with _known(submission):
        asyncio.run(tail())
    return wait(client, submission)


def wait(client: Client, submission: str) -> JobState:
    """Return how a job ended, as soon as it has."""
    while not (now := state(client, submission)).over:
        time.sleep(POLL)
    return now


def _add_module(model: str | None, folder: Path) -> None:
    """Copy the file or the whole package of `package.module:factory`, if it lies here.

    Driver and workers start in the copy of `folder`, and so find it. What does not lie here has
    to be installed on the cluster.
    """
    module = (model or "").partition(":")[0]
    if module in ("", "zfscale", "torchvision"):
        return
    inside = Path(*module.split("."))
    file = inside.with_suffix(".py")
    if (inside / "__init__.py").is_file() or (len(inside.parts) > 1 and file.is_file()):
        package = inside.parts[0]
        shutil.copytree(package, folder / package)
    elif file.is_file():
        shutil.copy(file, folder)


def _command(name: str, overrides: Sequence[str]) -> list[str]:
    sets = [argument for override in overrides for argument in ("--set", override)]
    return ["python", "-m", "zfscale", "run", name, "--address", "auto", *sets]


def _state(info: Any) -> JobState:
    return JobState(
        id=info.submission_id,
        status=str(getattr(info.status, "value", info.status)),
        message=(info.message or "").partition("\n")[0],  # the log follows, which `logs` gives
        exit_code=info.driver_exit_code,
        started=_moment(info.start_time),
        ended=_moment(info.end_time),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


@contextmanager
def _known(submission: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UsageError(f"job {submission}: {error}") from error


def _check_address(address: str, insecure: bool, environment: Mapping[str, str]) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"--address {address}: expected the URL of a Ray dashboard, e.g. http://127.0.0.1:8265"
        )
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        other = environment.get(name)
        if other and other.rstrip("/") != address.rstrip("/"):
            raise UsageError(
                f"--address {address}: Ray would use {name}={other} "
                f"of the environment instead; unset {name}"
            )
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not (local or insecure or _has_token(environment)):
        raise UsageError(
            f"--address {address}: anyone who reaches this cluster can run code on it. Protect it "
            "with a token and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here; or open a tunnel "
            "and use 127.0.0.1; or, if something else protects it, say --insecure"
        )


def _has_token(environment: Mapping[str, str]) -> bool:
    """Whether Ray's client will send a token, by the rules of Ray's token authentication."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    if environment.get("RAY_AUTH_TOKEN"):
        return True
    place = environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return Path(place).is_file()


def _check_paths(job: Job, place: str) -> None:
    weights = job.weights if job.weights and not job.weights.startswith("seed:") else None
    named = [("run", job.run), ("weights", weights), ("classes", job.classes)]
    named += [("images", each) for each in job.images]
    for name, given in job.analyses.items():
        named += [(f"analyses.{name}.{key}", at) for key, at in analyses.files(name, given).items()]
    for key, value in named:
        if value and "://" not in value and not Path(value).is_absolute():
            raise UsageError(
                f"{place}: {key}: {value} is relative to this directory, which the cluster does "
                "not have; give a URL, or an absolute path that all its machines share"
            )
