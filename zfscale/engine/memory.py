"""Whether a job fits in memory, found out before any work is done.

An estimate from the shapes of the network: it refuses what cannot be, not what may be tight.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from zfscale.convnet.network import Network
from zfscale.engine.resolve import ResolvedJob
from zfscale.errors import UsageError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container says how much memory it may use."""


def check_memory(network: Network, job: ResolvedJob) -> None:
    """Raises UsageError, naming the sizes, if the weights and one batch cannot fit on the device.

    Counted are the weights, the normalised input, and the most bytes of maps that are needed at
    one time; what convolutions take to work in comes on top.
    """
    weights = sum(t.numel() * t.element_size() for t in network.module.state_dict().values())
    batch = job.batch * network.bytes_per_image
    there = _bytes_there(job.device)
    if weights + batch > there:
        name, place = network.name, "GPU" if job.device == "cuda" else "machine"
        fits = int((there - weights) // network.bytes_per_image)
        way_out = f"use a batch of at most {fits}" if fits >= 1 else "use a device with more memory"
        raise UsageError(
            f"batch: {job.batch} images of {name} need {_gigabytes(batch)} for their largest maps "
            f"and {_gigabytes(weights)} for the weights, and this {place} has {_gigabytes(there)}: "
            f"{way_out}"
        )


def _bytes_there(device: str) -> int:
    """Memory of the device, in bytes; that of a container if it may use less."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits = (Path(path).read_text().strip() for path in _LIMITS if Path(path).is_file())
    return min([*sizes, *(int(limit) for limit in limits if limit.isdigit())])


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
