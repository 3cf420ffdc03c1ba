"""Benchmarks: side by side with peers and with the limit, as ratios within one run.

One file = one benchmark = one name of `python -m benchmarks NAME`. A file has a docstring whose
first line is its title, and `run() -> Report`. Files with an underscore are shared by them.
"""

from __future__ import annotations

from zfscale.convnet.runtime import before_torch

before_torch()  # as in a worker's process
