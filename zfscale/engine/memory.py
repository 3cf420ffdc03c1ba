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


def check_memory(network: Network, job: ResolvedJob, limit: int | None = None) -> None:
    """Raises UsageError, naming the sizes, if what a task needs at once cannot fit on the device.

    Counted are the weights, the normalised input, the most bytes of maps that are needed at one
    time, and what the analysis holds beside them; what convolutions take to work in comes on top.
    `limit` is in bytes; left out, it is the memory of the device.
    """
    there = bytes_there(job.device) if limit is None else limit
    weights = sum(t.numel() * t.element_size() for t in network.module.state_dict().values())
    batch = job.batch * network.bytes_per_image
    beside, name = max((stage.analysis.memory(network), stage.name) for stage in job.stages)
    if weights + batch + beside <= there:
        return
    sizes = [f"{_in_words(batch)} for their largest maps", f"{_in_words(weights)} for the weights"]
    if beside:
        sizes.append(f"{_in_words(beside)} for what {name} holds at once")
    fits = int((there - weights - beside) // network.bytes_per_image)
    way_out = f"use a batch of at most {fits}" if fits >= 1 else "use a device with more memory"
    raise UsageError(
        f"batch: {job.batch} images of {network.name} need {', '.join(sizes[:-1])} and "
        f"{sizes[-1]}, and this {'GPU' if job.device == 'cuda' else 'machine'} has "
        f"{_in_words(there)}: {way_out}"
    )


def bytes_there(device: str) -> int:
    """Memory of the device, in bytes; that of a container if it may use less."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits = (Path(path).read_text().strip() for path in _LIMITS if Path(path).is_file())
    return min([*sizes, *(int(limit) for limit in limits if limit.isdigit())])


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
