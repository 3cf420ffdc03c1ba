"""What must stay as it is for a run to go on, part by part; docs/formats.md explains each."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import zfscale
from zfscale import models
from zfscale.convnet.network import Network
from zfscale.engine.resolve import ResolvedJob

LIBRARIES = ("numpy", "pillow", "torch", "torchvision")
"""Libraries whose version may change a result."""


def fingerprint(job: ResolvedJob, network: Network) -> dict[str, Any]:
    """The parts by name, as plain JSON; not the device, for a worker says which it has."""
    return {
        "model": job.model,
        "network": models.fingerprint(network),
        "preprocessing": asdict(network.preprocessing),
        "batch": job.batch,
        "threads_per_worker": job.threads_per_worker,
        "versions": {"zfscale": zfscale.__version__} | {name: version(name) for name in LIBRARIES},
    }


def described(job: ResolvedJob, network: Network) -> dict[str, Any]:
    """What run.json says of the run as a whole, for readers of its results and for later jobs."""
    return {
        "job": job.remembered,
        "preprocessing": asdict(network.preprocessing),
        "untraceable": network.untraceable,
    }
