"""Settings of a worker's process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from zfscale.convnet.runtime import prepare

FAULTS = """
import resource, torch
from zfscale.convnet.runtime import prepare
if {prepared}:
    prepare()
def use():
    torch.zeros(32 << 20).add_(1)
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_determinism_holds_for_all_that_follows() -> None:
    threads = torch.get_num_threads()
    try:
        prepare(threads=1)
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def _faults(prepared: bool) -> int:
    """Page faults of twenty large tensors in turn, after three that were there before."""
    command = [sys.executable, "-c", FAULTS.format(prepared=prepared)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_tensors_take_the_memory_of_earlier_ones() -> None:
    assert _faults(prepared=True) * 5 < _faults(prepared=False)
