"""A job with nothing left out: what it does not say is taken from its run or from the machine.

Opens nothing for writing, and reads no image.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from zfscale import analyses
from zfscale.engine.worker import Setup
from zfscale.errors import UsageError
from zfscale.job import Job
from zfscale.runs import manifest as manifests
from zfscale.storage import files, open_storage

GROUP = 4
"""Threads of a worker at most. Their number changes sums within some convolutions, so it does
not depend on how many workers there are, and is part of the fingerprint."""


def local_device() -> str:
    """What `device: auto` stands for where the workers are on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve(job: Job, auto: Callable[[], str] = local_device) -> Setup:
    """The job with nothing left out: paths absolute, what it does not say taken from its run.

    `auto` is asked for the device, cpu or cuda, if the job leaves it open. Raises UsageError if
    neither the job nor an existing run says something that is needed.
    """
    job = _remembered(job)
    device = auto() if job.device == "auto" else job.device
    return Setup(job, device, threads=min(GROUP, os.cpu_count() or 1))


def _remembered(job: Job) -> Job:
    job = job.model_copy(update={"run": files.canonical(job.run)})
    storage = open_storage(job.run)
    said = job.model_dump(include=job.model_fields_set | {"run", "analyses"})
    known, _ = manifests.latest(storage)
    remembered = {} if known is None else dict(known.facts["spec"])
    remembered.pop("analyses", None)
    job = Job.model_validate(remembered | said)
    for key in ("model", "images"):
        if not getattr(job, key):
            raise UsageError(f"{key}: missing, and no run at {job.run} knows it")
    places = {"images": tuple(files.canonical(place) for place in job.images)}
    named = {
        key: files.canonical(value)
        for key, value in (("weights", job.weights), ("classes", job.classes))
        if value is not None and not value.startswith("seed:")
    }
    options = {name: _with_places(name, given) for name, given in job.analyses.items()}
    job = job.model_copy(update=places | named | {"analyses": options})
    scanned = tuple(remembered.get("images", job.images))
    if "scan" not in job.analyses and scanned != job.images:
        told = "leave images out of a job that does not scan"
        raise UsageError(f"images: {job.run} holds a scan of {scanned}; {told}")
    for place in job.images:
        if f"{job.run}/".startswith(f"{place}/") or place.startswith(f"{job.run}/"):
            raise UsageError(f"run: {job.run} and the images at {place} lie one inside the other")
    return job


def _with_places(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options of an analysis with the files that they name made absolute."""
    places = analyses.files(name, given)
    return given | {key: files.canonical(place) for key, place in places.items()}
