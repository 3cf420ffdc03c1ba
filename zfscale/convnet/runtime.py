"""How this process computes: the same bytes for the same input, no time lost to paging or waiting.

These are settings of the whole process, so workers, commands and benchmarks make them, not
libraries. Importing this module does not load torch: `before_torch` has to come first.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

WAITING = {"GOMP_SPINCOUNT": "4000"}
"""Threads that wait for each other spin for some 80 microseconds, and then sleep.

Between most operations that is long enough: to sleep at once costs a scan of ZFNet a fifth of its
speed on a quiet machine. It is short beside a time slice: see `before_torch`.
"""
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""All variables that decide this: the standard's, and that of GNU's OpenMP."""


def before_torch() -> bool:
    """Let threads that wait for each other sleep soon instead of spin. False if torch is loaded.

    Each operation of a network ends when all its threads have. By default (libgomp, the OpenMP
    of torch for Linux) a thread that is done first spins for some 5 ms. That is longer than the
    time slice which the system gives to another process on the core of the thread it waits for,
    so beside a busy machine most of the time that this process gets is spent spinning.

    OpenMP reads its environment once, when torch loads it: this must come before the first
    import of torch, and is inherited by the processes started afterwards. What the user has set
    stays as it is. It changes no result.
    """
    if "torch" in sys.modules:
        return False
    if not any(name in os.environ for name in WAITING_VARIABLES):
        os.environ.update(WAITING)
    return True


def prepare(threads: int | None = None) -> None:
    """Make this process a worker's: determinism, memory kept, and a fixed number of threads.

    It stays so until it ends.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    _be_deterministic()
    _keep_memory()


def _be_deterministic() -> None:
    """Same input, same bytes: full float32, fixed algorithms."""
    import torch

    # cuBLAS reads this when it starts, so it must be set before the first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _keep_memory() -> None:
    """Let malloc keep the memory of large tensors for the next ones (glibc; mallopt(3)).

    By default it hands each of them back to the system at once, and every batch then pays for
    fresh pages: a quarter of the time of ZFNet's forward pass.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries know no mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
