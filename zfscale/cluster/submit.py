"""A whole job sent to a cluster through Ray's job API, and what can be asked about it afterwards.

Knows what is sent: the job file under the hash of its text, this package, the module of a model
that lies in the current directory, a fixed command line; no secrets.
Not what the job does: on the cluster it is an ordinary `zfscale run`.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zfscale
from zfscale.cluster.authentication import (
    dashboard_refuses,
    ensure_token,
    find_token,
    sends_token,
)
from zfscale.cluster.session import ray_module
from zfscale.engine.stages import kinds_of, option_files, options_of
from zfscale.errors import UsageError
from zfscale.job import Job, parse

VERSION_KEY = "zfscale_version"
"""Metadata by which our jobs are told from other jobs of the cluster."""
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
Client = Any
"""A `ray.job_submission.JobSubmissionClient`."""


@dataclass(frozen=True, slots=True)
class JobState:
    """State of a submitted job. `exit_code` is that of `zfscale run`, None until it has ended."""

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

    Raises UsageError for a remote address without a token, one that the environment contradicts,
    one that does not answer, or one that refuses our token. A cluster on this machine is sent the
    token of this machine if it asks for one.
    """
    _check_address(address, insecure, os.environ)
    host = urlsplit(address).hostname or ""
    ensure_token(f"--address {address}", host, partial(dashboard_refuses, address))
    ray = ray_module()
    from ray.job_submission import JobSubmissionClient

    # Its modules log each upload, whatever level they inherit.
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(f"--address {address}: {error}") from error


def submit(
    client: Client,
    text: str,
    overrides: Sequence[str] = (),
    place: str = "job",
    replaced: Sequence[str] = (),
    resume_with: str | None = None,
) -> str:
    """Start the job file `text` on the cluster and return the id of the submission.

    The job is checked here first: every path in it must mean the same on all machines. The module
    of a model is sent along if it lies in the current directory. `place` names the file in
    messages. `replaced` are analyses whose results are dropped first. `resume_with` is
    the command that goes on with the job, for its log and its run. Raises UsageError.
    """
    job = parse(text, place, tuple(overrides))
    _check_paths(job, place)
    name = f"job-{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(text, encoding="utf-8")
        _add_module(job.model, Path(folder))
        # The directory and the package are uploaded here, each under the hash of its content.
        submission: str = client.submit_job(
            entrypoint=shlex.join(_command(name, overrides, replaced, resume_with)),
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(Path(zfscale.__file__).parent)],
                "excludes": ["__pycache__"],
            },
            metadata={VERSION_KEY: zfscale.__version__},
        )
    return submission


def state(client: Client, submission: str) -> JobState:
    """The state of a job."""
    with _unknown_job_reported(submission):
        return _state(client.get_job_info(submission))


def jobs(client: Client) -> list[JobState]:
    """The jobs of zfscale that the cluster remembers, oldest first."""
    infos = [info for info in client.list_jobs() if VERSION_KEY in (info.metadata or {})]
    return [_state(info) for info in sorted(infos, key=lambda info: info.start_time or 0)]


def stop(client: Client, submission: str) -> bool:
    """Ask a job to stop: it commits what is finished. False if it had ended before."""
    with _unknown_job_reported(submission):
        return bool(client.stop_job(submission))


def logs(client: Client, submission: str) -> str:
    """What a job has printed so far."""
    with _unknown_job_reported(submission):
        return str(client.get_job_logs(submission))


def follow(
    client: Client, submission: str, show: Callable[[str], None], poll: float = 2.0
) -> JobState:
    """Show what a job prints until it ends, and return its final state, as `wait` does."""

    async def tail() -> None:
        async for chunk in client.tail_job_logs(submission):
            show(chunk)

    with _unknown_job_reported(submission):
        asyncio.run(tail())
    return wait(client, submission, poll)


def wait(client: Client, submission: str, poll: float = 2.0) -> JobState:
    """Return the final state of a job once it has ended; asks every `poll` seconds."""
    while not (current := state(client, submission)).over:
        time.sleep(poll)
    return current


def _add_module(model: str | None, folder: Path) -> None:
    """Copy the module before the colon of a model's name to `folder`, if it lies here.

    This is the file, or the whole package of `package.module:factory`. Driver and workers start in
    a copy of `folder` and import it from there. What does not lie here has to be installed on the
    cluster, where no file from here may take the place of something that zfscale itself imports.
    """
    module = (model or "").partition(":")[0]
    package = module.partition(".")[0]
    if not package or package in _our_packages():
        return
    path = Path(*module.split("."))
    file = path.with_suffix(".py")
    if (path / "__init__.py").is_file() or (package != module and file.is_file()):
        shutil.copytree(package, folder / package)
    elif file.is_file():
        shutil.copy(file, folder)


def _our_packages() -> set[str]:
    """This package and what its installation requires, e.g. torchvision."""
    try:
        requirements = importlib.metadata.requires("zfscale") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        requirements = []
    names = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {"zfscale"} | {name[0] for name in names if name}


def _command(
    name: str, overrides: Sequence[str], replaced: Sequence[str], resume_with: str | None
) -> list[str]:
    sets = [argument for override in overrides for argument in ("--set", override)]
    replace = [argument for analysis in replaced for argument in ("--replace", analysis)]
    resume = [] if resume_with is None else ["--resume-with", resume_with]
    return ["python", "-m", "zfscale", "run", name, "--address", "auto", *sets, *replace, *resume]


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
def _unknown_job_reported(submission: str) -> Iterator[None]:
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
    has_token = sends_token(environment) and find_token(environment) is not None
    if not (local or insecure or has_token):
        raise UsageError(
            f"--address {address}: anyone who reaches this cluster can run code on it. Protect it "
            "with a token and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here; or open a tunnel "
            "and use 127.0.0.1; or, if something else protects it, say --insecure"
        )


def _check_paths(job: Job, place: str) -> None:
    weights = job.weights if job.weights and not job.weights.startswith("seed:") else None
    named = [("run", job.run), ("weights", weights), ("classes", job.classes)]
    named += [("images", each) for each in job.images]
    for name, kind in kinds_of(job).items():
        options = options_of(name, kind, job.analyses[name])
        paths = {key: getattr(options, key) for key in sorted(option_files(kind))}
        named += [(f"analyses.{name}.{key}", path) for key, path in paths.items()]
    for key, value in named:
        if value and "://" not in value and not Path(value).is_absolute():
            raise UsageError(
                f"{place}: {key}: {value} is relative to this directory, which the cluster does "
                "not have; give a URL, or an absolute path that all its machines share"
            )
