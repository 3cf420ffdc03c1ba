"""Scan of decoded images against the bare forward pass.

Both take the same batches by turns, so that what else the machine does hits both alike. The bare
pass runs the module on inputs that are normalised already; the scan begins with uint8 pixels and
ends with the rows of its tables.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks import _images
from benchmarks._decoded import batches, forward, scan_all
from benchmarks._report import Report
from benchmarks._timing import seconds
from zfscale import models
from zfscale.analysis import Batch
from zfscale.convnet.network import Network
from zfscale.convnet.runtime import prepare

MODELS = ("zfscale:alexnet", "zfscale:zfnet", "torchvision:alexnet")
K = 9


def compare(network: Network, given: Sequence[Batch]) -> tuple[float, float]:
    """Seconds of the scan and of the bare forward pass over the same batches."""
    passes: list[float] = []
    outside: list[float] = []

    def bare(batch: Batch) -> None:
        inputs = network.normalise(batch.pixels)
        passes.append(seconds(lambda: forward(network, inputs)))

    def between(batch: Batch) -> None:
        outside.append(seconds(lambda: bare(batch)))

    scan_all(network, given[:2], K)  # programs are written, kernels are chosen
    total = seconds(lambda: scan_all(network, given, K, between))
    return total - sum(outside), sum(passes)


def run(names: Sequence[str] = MODELS, count: int = 1000, batch: int = 32) -> Report:
    threads = os.cpu_count() or 1
    prepare(threads)
    rows = []
    for name in names:
        network = models.load(name, "seed:0")
        given = batches(_images.decoded(count, network.preprocessing), batch)
        images = len(given) * batch
        scanned, bare = compare(network, given)
        rates = (f"{images / scanned:.1f}", f"{images / bare:.1f}")
        rows.append((name, str(len(network.layers)), *rates, f"{bare / scanned:.3f}"))
    header = ("model", "layers", "scan, images/s", "bare forward pass, images/s", "ratio")
    return Report(header, rows, f"{count:,} {_images.kind()}, batch {batch}, {threads} threads.")
