"""What must stay as it is for a run to go on, part by part; docs/formats.md explains each."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

import zfscale
from zfscale import models
from zfscale.convnet.network import Network
from zfscale.engine.worker import Setup

LIBRARIES = ("numpy", "pillow", "torch", "torchvision")
"""Libraries whose version may change a result."""


def fingerprint(setup: Setup, network: Network) -> dict[str, Any]:
    """The parts by name, as plain JSON."""
    return {
        "model": setup.job.model,
        "network": models.fingerprint(network),
        "preprocessing": asdict(network.preprocessing),
        "batch": setup.job.batch,
        "device": _device(setup),
        "threads": setup.threads,
        "versions": {"zfscale": zfscale.__version__} | {name: version(name) for name in LIBRARIES},
    }


def _device(setup: Setup) -> str:
    """The class of device that promises equal bytes."""
    if setup.device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
