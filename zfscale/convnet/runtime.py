"""How this process computes: the same bytes for the same input, and no time lost to paging.

These are settings of the whole process, so workers and benchmarks make them, not libraries.
"""

from __future__ import annotations

import ctypes
import os

import torch

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def prepare(threads: int | None = None) -> None:
    """Make this process a worker's: determinism, memory kept, and a fixed number of threads.

    It stays so until it ends.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    _be_deterministic()
    _keep_memory()


def _be_deterministic() -> None:
    """Same input, same bytes: full float32, fixed algorithms."""
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
