"""Settings of a worker's process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zfscale.convnet.runtime import WAITING as SETTING
from zfscale.convnet.runtime import WAITING_VARIABLES, before_torch, prepare

ROOT = Path(__file__).parents[2]
SPINS = SETTING["GOMP_SPINCOUNT"]

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


WAITING = """
from zfscale.convnet.runtime import before_torch
{first}
import time, torch
torch.set_num_threads(2)
def work():
    for _ in range(100):
        torch.zeros(1 << 17).add_(1)  # large enough for two threads
        time.sleep(0.01)
work()
before = time.process_time()
work()
print(time.process_time() - before)
"""


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in which nothing says how threads wait but this."""
    rest = {name: value for name, value in os.environ.items() if name not in WAITING_VARIABLES}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=rest | environment, cwd=ROOT, check=True, capture_output=True, text=True
    )


@pytest.mark.skipif(platform.system() != "Linux", reason="other systems have another OpenMP")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="no thread waits")
def test_waiting_takes_no_processor_time() -> None:
    """Pauses between operations, in which a thread that spins is as busy as in the operations."""
    spinning = float(_python(WAITING.format(first="")).stdout)
    sleeping = float(_python(WAITING.format(first="before_torch()")).stdout)
    assert sleeping * 3 < spinning


def test_what_the_user_has_set_stays() -> None:
    code = (
        "import os\nfrom zfscale.convnet.runtime import before_torch\n"
        "before_torch()\nprint(*map(os.environ.get, ['OMP_WAIT_POLICY', 'GOMP_SPINCOUNT']))"
    )
    assert _python(code).stdout == f"None {SPINS}\n"
    assert _python(code, OMP_WAIT_POLICY="active").stdout == "active None\n"
    assert _python(code, GOMP_SPINCOUNT="77").stdout == "None 77\n"


def test_commands_set_it_before_torch() -> None:
    """Importing the command line loads no torch, and a command sets what its torch will read."""
    code = (
        "import sys, os\nimport zfscale.cli\nassert 'torch' not in sys.modules\n"
        "try:\n    zfscale.cli.main(['--version'])\n"
        "except SystemExit:\n    print(os.environ['GOMP_SPINCOUNT'])"
    )
    assert _python(code).stdout.split()[-1] == SPINS


def test_a_process_with_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAITING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not before_torch()
    assert not set(WAITING_VARIABLES) & os.environ.keys()
