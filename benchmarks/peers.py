"""The same job beside its peers: the nine strongest of 1,000 images for every channel.

AlexNet of torchvision, its five convolutions after their rectification, decoded images. zfscale
and the loops start from uint8 pixels; semanticlens and zennit-crp, which take a data set, get
normalised ones. zfscale keeps positions, statistics and predictions besides. Each works in a
process of its own, which zfscale sets up as it does its workers'. Which images are right is known
by brute force: all maxima in memory, sorted.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks import _images
from benchmarks._contenders import CONTENDERS, Found, contend
from benchmarks._decoded import batches
from benchmarks._report import Report
from benchmarks._timing import by_turns, ratio
from zfscale import models
from zfscale.convnet.network import Network


@torch.inference_mode()
def brute_force(network: Network, pixels: torch.Tensor, batch: int) -> list[torch.Tensor]:
    """All maxima (N, channels) of every layer, kept in memory."""
    parts: list[list[torch.Tensor]] = []
    layers = network.layers
    for given in batches(pixels, batch):
        seen: dict[str, torch.Tensor] = {}
        network.forward(
            given.pixels, layers, lambda name, maps, to=seen: to.update({name: maps.amax((2, 3))})
        )
        parts.append([seen[layer.name][: len(given.images)] for layer in layers])
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def agreement(found: Found, maxima: list[torch.Tensor]) -> float:
    """Fraction of channels whose list is right: k different images, the strongest, in order.

    Scores are compared to a relative 1e-5, so that ties and another order of additions in the
    convolutions count as right.
    """
    right = total = 0
    for ids, scores in zip(found, maxima, strict=True):
        best = scores.sort(0, descending=True).values[: ids.shape[1]].T
        listed = scores.T.gather(1, ids.clamp(min=0).long())
        same = torch.isclose(listed, best, rtol=1e-5, atol=0).all(1) & (ids >= 0).all(1)
        ordered = ids.sort(1).values
        same &= (ordered[:, 1:] != ordered[:, :-1]).all(1)
        right, total = right + int(same.sum()), total + len(ids)
    return right / total


def run(count: int = 1000, k: int = 9, batch: int = 32, rounds: int = 3) -> Report:
    threads = os.cpu_count() or 1
    network = models.load("torchvision:alexnet", "seed:0")
    pixels = _images.decoded(count, network.preprocessing)
    maxima = brute_force(network, pixels, batch)
    present = [work.__name__ for work, module in CONTENDERS.items() if _installed(module)]
    right: dict[str, float] = {}

    def timed(name: str, file: str) -> float:
        alone = get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=alone) as process:
            taken, found = process.submit(contend, name, file, k, batch, threads).result()
        right[name] = agreement(found, maxima)
        return taken

    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(pixels, file.name)
        routines = {name: (lambda name=name: timed(name, file.name)) for name in present}
        taken = by_turns(routines, rounds)
    rows = [
        (
            name.replace("_", " "),
            f"{count / sorted(times)[rounds // 2]:.1f}",
            ratio(times, taken["zfscale"]),
            f"{right[name]:.1%}",
        )
        for name, times in taken.items()
    ]
    header = ("top k by", "images/s", "time, zfscale = 1", "channels with the right list")
    note = (
        f"{count:,} {_images.kind()}, k = {k}, batch {batch}, {threads} threads, medians of "
        f"{rounds} rounds by turns, each in a new process."
    )
    return Report(header, rows, note)


def _installed(module: str | None) -> bool:
    """Whether a contender can take part; says how to install it if not."""
    if module is None or importlib.util.find_spec(module) is not None:
        return True
    print(
        f"{module} is not installed and left out: pip install -r benchmarks/requirements.txt",
        file=sys.stderr,
    )
    return False
