"""Occlusion, incremental, against full re-inference and against Captum.

One image under every position of a grey occluder: the total activations of the last convolution
and all probabilities, or the activations alone. Full re-inference runs the module itself, in
inference mode and channels-last, on batches of occluded images of the best size; Captum's
Occlusion makes the same batches. What these two take for a position does not depend on where it
is, so they are timed on some positions; zfscale is timed on all of them, its look at the image
without an occluder included. All take turns in one process with the same settings.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from captum.attr import Occlusion
from torch.profiler import ProfilerActivity, profile

from benchmarks import _images
from benchmarks._report import Report
from benchmarks._timing import by_turns, ratio, seconds
from zfscale import models
from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.geometry import spatial_size
from zfscale.convnet.incremental import occlusion
from zfscale.convnet.incremental.inference import Grid, Incremental
from zfscale.convnet.incremental.occlusion import FullOccluder, IncrementalOccluder
from zfscale.convnet.incremental.spans import Spans, taps
from zfscale.convnet.network import Network
from zfscale.convnet.runtime import prepare

BATCHES = (8, 16, 32, 64)
MEMORY = 512 << 20
GREY = torch.zeros(3)


@dataclass(frozen=True)
class Case:
    """A network and an occluder: `classify` asks for probabilities too."""

    model: str
    size: int
    stride: int
    classify: bool = True

    @property
    def name(self) -> str:
        """The case in words."""
        what = "" if self.classify else ", last convolution only"
        return f"{self.model.partition(':')[2]}, {self.size} px, stride {self.stride}{what}"


CASES = (
    Case("torchvision:vgg16", 16, 4),
    Case("zfscale:zfnet", 16, 4),
    Case("zfscale:zfnet", 32, 8),
    Case("zfscale:zfnet", 16, 4, classify=False),
    Case("torchvision:resnet18", 16, 4),
)


def run(cases: tuple[Case, ...] = CASES, rounds: int = 3) -> Report:
    """Time every case, count its multiply-adds, and weigh its memory."""
    warnings.filterwarnings("ignore", module="captum")
    prepare()
    rows, shares = [], []
    for case in cases:
        network, image, places = set_out(case)
        occluder = incrementally(network, places, case.classify)
        batch = best_batch(network, image)
        taken = by_turns(
            {
                "incremental": lambda m=occluder, i=image: sweep(m, i),
                "full": lambda n=network, i=image, b=batch: again(n, i, b),
                "ours": lambda n=network, i=image, b=batch, c=case: entirely(n, i, b, c.classify),
                "captum": lambda n=network, i=image, b=batch, c=case: captum(n, i, b, c.size),
            },
            rounds,
        )
        possible = multiply_adds(network, places, case.classify)
        peaks = [peak(case, way, batch) for way in ("incremental", "full")]
        rows.append(
            (
                case.name,
                f"{1e3 * median(taken['incremental']):.2f}",
                f"{1e3 * median(taken['full']):.1f} (batches of {batch})",
                *(ratio(taken[name], taken["incremental"]) for name in ("full", "ours", "captum")),
                f"{possible:.1f}",
                f"{peaks[0]:,} / {peaks[1]:,}",
            )
        )
        shares.append(f"{case.name}: {where_time_goes(occluder, image)}")
    header = (
        "network and occluder",
        "ms a position",
        "full, ms a position",
        "against full",
        "against zfscale's own full way",
        "against Captum",
        "possible by multiply-adds",
        "peak memory, incremental / full, MiB",
    )
    note = (
        f"{torch.get_num_threads()} threads, {rounds} rounds: medians, and for ratios their range. "
        "Where the last convolution alone is asked for, full re-inference still runs the whole "
        "module. What is possible: multiply-adds of full re-inference over those of convolving "
        "only what changed. Of the time of an incremental sweep go into: " + "; ".join(shares) + "."
    )
    return Report(header, rows, note)


def set_out(case: Case) -> tuple[Network, torch.Tensor, Grid]:
    """The network with random weights, a normalised image and the positions."""
    network = models.load(case.model, "seed:0", "cpu")
    pixels = _images.decoded(1, network.preprocessing)
    crop = network.preprocessing.crop
    places = occlusion.grid(crop, (case.size,) * 2, (case.stride,) * 2)
    return network, network.normalise(pixels), places


def incrementally(network: Network, places: Grid, classify: bool) -> IncrementalOccluder:
    """The way that is measured."""
    return IncrementalOccluder(network, network.layers[-1], places, GREY, classify, MEMORY)


def sweep(occluder: IncrementalOccluder, image: torch.Tensor, rows: int | None = None) -> float:
    """Seconds a position, over all positions or those of the first rows."""
    places = occluder.places
    rows = len(places.rows) if rows is None else min(rows, len(places.rows))

    def work() -> None:
        before = occluder.set_image(image)
        occlusion.occlusion_sensitivity(occluder, [before.strongest[0]], 0, (0, rows))

    return seconds(work) / (rows * len(places.columns))


@torch.inference_mode()
def again(network: Network, image: torch.Tensor, batch: int) -> float:
    """Seconds a position of the module itself on a batch of occluded images."""
    images = image.repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    images[:, :, :16, :16] = 0
    return seconds(lambda: network.module(images)) / batch


def entirely(network: Network, image: torch.Tensor, batch: int, classify: bool) -> float:
    """Seconds a position of zfscale's way for networks that cannot be followed."""
    places = Grid(((0, 16),), tuple((x, x + 16) for x in range(batch)))
    occluder = FullOccluder(network, network.layers[-1], places, GREY, classify, 1 << 40)
    occluder.set_image(image)
    return seconds(lambda: list(occluder.blocks([0], (0, 1)))) / batch


def captum(network: Network, image: torch.Tensor, batch: int, size: int) -> float:
    """Seconds a position of Captum's Occlusion, with the largest stride that it allows."""
    side, stride = image.shape[2], size
    count = (-(-(side - size) // stride) + 1) ** 2
    occluded = Occlusion(network.module)
    with torch.inference_mode():
        return (
            seconds(
                lambda: occluded.attribute(
                    image,
                    sliding_window_shapes=(3, size, size),
                    strides=(3, stride, stride),
                    baselines=0,
                    target=0,
                    perturbations_per_eval=batch,
                )
            )
            / count
        )


def best_batch(network: Network, image: torch.Tensor) -> int:
    """The batch size at which full re-inference takes least time a position."""
    for batch in BATCHES:
        again(network, image, batch)
    return min(BATCHES, key=lambda batch: min(again(network, image, batch) for _ in range(2)))


def multiply_adds(network: Network, places: Grid, classify: bool) -> float:
    """Multiply-adds of full re-inference over those of convolving only the difference.

    Full re-inference computes all layers, also where the last convolution alone is asked for.
    """
    last = str(network.layers[-1].node)
    graph = network.traced
    engine = Incremental(network, [last, graph.output] if classify else [last])
    spans = engine.spans(places)
    positions = len(places.rows) * len(places.columns)
    whole = changed = 0
    for name, node in graph.nodes.items():
        if not isinstance(node.operation, ops.Convolution | ops.Linear):
            continue
        height, width = spatial_size(node)
        weights = node.operation.weight
        whole += positions * weights.numel() * height * width
        if name not in engine.inputs:
            continue
        below = spans[engine.inputs[name][0]]
        if isinstance(node.operation, ops.Linear):
            channels = engine.map_of(engine.inputs[name][0])[0]
            changed += below[0].length * below[1].length * channels * len(weights)
        else:
            met = [_meetings(below[a], spans[name][a], node.operation.window, a) for a in (0, 1)]
            changed += met[0] * met[1] * weights.shape[0] * weights.shape[1]
    return whole / changed


def _meetings(below: Spans, above: Spans, window: ops.Sliding, axis: int) -> int:
    """How often an output meets a changed input along one axis."""
    return int((taps(below, above, window, axis) >= 0).sum())


KINDS: dict[str, tuple[str, ...]] = {
    "products": ("mm", "addmm", "bmm", "mkldnn_convolution"),
    "adding products up": ("embedding_bag",),
    "moving values": ("index", "copy_", "cat", "fill_", "zero_", "clone"),
}


def where_time_goes(occluder: IncrementalOccluder, image: torch.Tensor) -> str:
    """Shares of the time of some blocks by kind of work."""
    before = occluder.set_image(image)
    rows = 0, min(len(occluder.places.rows), 16)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        occlusion.occlusion_sensitivity(occluder, [before.strongest[0]], 0, rows)
    times = dict.fromkeys([*KINDS, "elementwise and the rest"], 0.0)
    for event in profiler.key_averages():
        names = (kind for kind, parts in KINDS.items() if any(p in event.key for p in parts))
        times[next(names, "elementwise and the rest")] += event.self_cpu_time_total
    total = sum(times.values())
    return ", ".join(f"{kind} {time / total:.0%}" for kind, time in times.items())


def peak(case: Case, way: str, batch: int) -> int:
    """MiB that a process of its own holds at most while it does some of the work."""
    arguments = json.dumps([case.model, case.size, case.stride, case.classify, way, batch])
    code = f"from benchmarks import occlusion; occlusion.weigh(*{arguments})"
    code = code.replace("true", "True").replace("false", "False")
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(found.stdout)


def weigh(model: str, size: int, stride: int, classify: bool, way: str, batch: int) -> None:
    """Print the peak resident set of this process, in MiB, after some of the work."""
    prepare()
    network, image, places = set_out(Case(model, size, stride, classify))
    work: dict[str, Callable[[], object]] = {
        "incremental": lambda: sweep(incrementally(network, places, classify), image, 32),
        "full": lambda: [again(network, image, batch) for _ in range(2)],
    }
    work[way]()
    # Not what getrusage says: that begins with what the parent of this process held.
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(line) // 1024)
