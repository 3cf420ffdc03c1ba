"""A job with nothing left out: one frozen plan, checked once, that driver and workers read.

What the job file does not say is taken from its run or from the machine. Nobody reads the job
file's raw keys after this. Opens nothing for writing, and reads no image.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zfscale import collection
from zfscale.engine.stages import Stage, choose_stages
from zfscale.errors import UsageError
from zfscale.job import Job, explain
from zfscale.runs import manifest as manifests
from zfscale.runs.manifest import Manifest
from zfscale.storage import files, open_storage

THREADS = 4
"""Threads of a worker, unless the job says how many or its machine has fewer cores."""


@dataclass(frozen=True)
class Machine:
    """What workers will run on: `device` is cpu or cuda, `cores` those of the largest machine; None
    where they are not known yet. `words` describe it for messages.
    """

    device: str | None
    cores: int | None
    words: str = ""


@dataclass(frozen=True)
class ResolvedJob:
    """A job as driver and workers read it; picklable.

    Paths are absolute. `workers` None is as many as fit. `threads_per_worker` compute, and are
    part of the fingerprint; `decode_threads` decode beside them, and are not. `stages` are in
    the order in which they are done. `device_name` is the model of GPU, or the instruction set of
    the CPU, that the run has results of: workers must have the same; None where there are none.
    `replaced` are analyses whose results are dropped first.
    `command` is the command line that goes on with the job.
    """

    run: str
    model: str
    weights: str | None
    images: tuple[str, ...]
    format: str | None
    classes: str | None
    batch: int
    device: str
    workers: int | None
    threads_per_worker: int
    decode_threads: int
    max_quarantined: float
    stages: tuple[Stage, ...]
    device_name: str | None = None
    replaced: tuple[str, ...] = ()
    command: str | None = None

    @property
    def remembered(self) -> dict[str, Any]:
        """What a later job on the same run need not say again, by key of the job file."""
        keys = (
            *("model", "weights", "images", "format", "classes"),
            *("batch", "threads_per_worker", "max_quarantined"),
        )
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


def local_machine() -> Machine:
    """This machine."""
    import torch

    cores = len(os.sched_getaffinity(0))
    return Machine("cuda" if torch.cuda.is_available() else "cpu", cores)


def resolve(
    job: Job,
    machine: Callable[[], Machine] = local_machine,
    replaced: tuple[str, ...] = (),
    command: str | None = None,
) -> ResolvedJob:
    """The job with nothing left out.

    `machine` is asked for device and cores if the job or its run leave them open. Raises
    UsageError naming the key, the value and what was expected.
    """
    job = _located(job)
    known, _ = manifests.latest(open_storage(job.run))
    job = _with_memory(job, known)
    run, images = job.run, job.images
    for place in images:
        if f"{run}/".startswith(f"{place}/") or place.startswith(f"{run}/"):
            raise UsageError(f"run: {run} and the images at {place} lie one inside the other")
    _check_no_run_around(run)
    if job.format is not None:
        collection.check_format(job.format)
    if job.model is None:
        raise UsageError(f"model: missing, and no run at {run} knows it")
    unknown = [name for name in replaced if known is None or name not in known.analyses]
    if unknown:
        have = ", ".join(known.analyses) if known else "none"
        raise UsageError(f"--replace {unknown[0]}: {run} has no such analysis; it has {have}")
    stages = choose_stages(job, known, replaced)
    if not any(stage.kind == "index" for stage in stages):
        _check_same_images(run, images, known)
    is_asked = job.device == "auto" or job.threads_per_worker is None
    found = machine() if is_asked else Machine(job.device, None)
    device = found.device if job.device == "auto" else job.device
    if device is None:
        raise UsageError(
            f"device: auto: the cluster has {found.words} so far, so no worker can run; if it "
            "starts nodes on demand, say which and how many: --set device=cuda --set workers=8"
        )
    threads = job.threads_per_worker or min(THREADS, found.cores or THREADS)
    return ResolvedJob(
        run=run,
        model=job.model,
        weights=job.weights,
        images=images,
        format=job.format,
        classes=job.classes,
        batch=job.batch,
        device=device,
        workers=None if job.workers == "auto" else job.workers,
        threads_per_worker=threads,
        decode_threads=job.decode_threads or threads,
        max_quarantined=job.max_quarantined,
        stages=stages,
        device_name=_device_name(known, replaced),
        replaced=replaced,
        command=command,
    )


def _check_no_run_around(run: str) -> None:
    """Refuse a run inside of another one, which would take its files for garbage of its own."""
    for parent in () if "://" in run else Path(run).parents:
        if (parent / "run.json").is_file() and (parent / manifests.FOLDER).is_dir():
            raise UsageError(f"run: {run} lies inside of the run {parent}: choose another place")


def _located(job: Job) -> Job:
    """The job with its places as everybody else will find them; seeds stay as they are."""
    single = {"run": job.run, "weights": job.weights, "classes": job.classes}
    places: dict[str, Any] = {
        key: files.canonical(place)
        for key, place in single.items()
        if place is not None and not place.startswith("seed:")
    }
    if job.images:
        places["images"] = tuple(files.canonical(place) for place in job.images)
    return job.model_copy(update=places)


def _with_memory(job: Job, known: Manifest | None) -> Job:
    """The job with what it does not say taken from its run."""
    said = job.model_dump(include=job.model_fields_set | {"run", "analyses"})
    remembered = {} if known is None else dict(known.metadata.get("job", {}))
    try:
        return Job.model_validate(remembered | said)
    except ValidationError as error:
        raise UsageError(f"{job.run}: what the run remembers: {explain(error, Job)}") from error


def _device_name(known: Manifest | None, replaced: tuple[str, ...]) -> str | None:
    """On what the results of a run were computed that this job keeps."""
    if known is None:
        return None
    kept = any(state.is_computed for name, state in known.analyses.items() if name not in replaced)
    name: str | None = known.fingerprint.get("device") if kept else None
    return name


def _check_same_images(run: str, images: tuple[str, ...], known: Manifest | None) -> None:
    """Refuse images that a job without a scan names and would not look at."""
    indexed = tuple(known.metadata.get("job", {}).get("images", ())) if known else ()
    if images != indexed:
        raise UsageError(
            f"images: {run} is of the images {', '.join(indexed) or 'of no place'}; leave images "
            "out of a job that does not scan"
        )
