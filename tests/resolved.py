"""The options of an analysis as a job has them."""

from __future__ import annotations

from typing import Any

from zfscale.engine.resolve import Machine, resolve
from zfscale.job import Job


def options(kind: str, **given: object) -> Any:
    """The validated options of an analysis in a job that scans before it."""
    work = {"run": "run", "model": "zfscale:zfnet-mini", "images": "images"}
    work |= {"analyses": {"scan": {}, kind: given}}
    resolved = resolve(Job.model_validate(work), lambda: Machine("cpu", 1))
    (stage,) = (stage for stage in resolved.stages if stage.name == kind)
    return stage.analysis.options
