"""All top-9 projections of ZFNet's five layers, against Captum's NeuronDeconvolution.

12,384 winners (96, 256, 384, 384 and 256 features, nine each), ZFNet without contrast
normalisation, which Captum would differentiate. Captum computes each unit on the full map and
runs a forward pass for it; zfscale starts from the stored switches, as its second job does (the
pass that stores them is part of a scan). In each layer a sample of winners is measured, both
tools in turn within one run, and weighed by the layer's number of winners. The least time of
all rounds counts.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import torch
from captum.attr import NeuronDeconvolution
from numpy.typing import NDArray

from benchmarks._report import Report
from zfscale.convnet.capture.geometry import Window
from zfscale.convnet.deconvolution.deconvnet import Deconvnet
from zfscale.convnet.deconvolution.switches import crop
from zfscale.convnet.network import Network
from zfscale.models.networks import zfnet
from zfscale.records import Layer

TOP_K = 9
IMAGES = 8
ZFSCALE_WINNERS = 64
CAPTUM_WINNERS = 4


def run(rounds: int = 9) -> Report:
    """Compare layer by layer, then weighed by the number of winners."""
    warnings.filterwarnings("ignore", module="captum")
    torch.manual_seed(0)
    module = zfnet.build(classes=1000, normalisation=False)
    for part in module:
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
    network = Network(module, zfnet.PREPROCESSING, "zfnet")
    pixels = torch.randint(0, 256, (IMAGES, 3, 224, 224), dtype=torch.uint8)
    rows, totals, furthest = [], np.zeros(2), 0.0
    for layer in network.layers:
        ours, theirs, difference = compare(network, layer, pixels, rounds)
        winners = layer.channels * TOP_K
        totals += winners * np.array([ours, theirs])
        furthest = max(furthest, difference)
        rows.append(_row(layer.name, winners, ours, theirs, difference))
    count = sum(layer.channels for layer in network.layers) * TOP_K
    rows.append(_row("all", count, *(totals / count), furthest))
    header = ("layer", "winners", "zfscale, ms each", "Captum, ms each", "times faster")
    note = (
        f"{torch.get_num_threads()} threads, best of {rounds} rounds. The pass that stores the "
        "switches is part of a scan and not counted; Captum needs no such pass."
    )
    return Report((*header, "largest difference"), rows, note)


def _row(name: str, winners: int, ours: float, theirs: float, difference: float) -> tuple[str, ...]:
    times = f"{ours * 1e3:.3f}", f"{theirs * 1e3:.1f}", f"{theirs / ours:.1f}"
    return (name, f"{winners:,}", *times, f"{difference:.0e}")


def compare(
    network: Network, layer: Layer, pixels: torch.Tensor, rounds: int
) -> tuple[float, float, float]:
    """Seconds a winner, of zfscale and of Captum, and how far apart their results are."""
    deconvnet = Deconvnet.of(network, layer)
    neuron = NeuronDeconvolution(network.module, network.module.get_submodule(str(layer.node)))
    inputs = network.normalise(pixels)
    window = network.window(layer)
    ours, theirs, difference = [], [], 0.0
    for seed in range(rounds):
        image, units, values, switches = draw(network, layer, pixels, seed)
        begun = time.perf_counter()
        found = deconvnet.project(units[:, 0], values, units[:, 1], units[:, 2], switches)
        ours.append((time.perf_counter() - begun) / len(units))
        sample = range(CAPTUM_WINNERS)
        begun = time.perf_counter()
        gradients = [
            neuron.attribute(inputs[image[i]][None], tuple(units[i].tolist())) for i in sample
        ]
        theirs.append((time.perf_counter() - begun) / len(sample))
        for i, gradient in zip(sample, gradients, strict=True):
            true = crop_window(gradient[0].detach().numpy() * values[i], window, *units[i, 1:])
            difference = max(difference, np.abs(found[i] - true).max() / np.abs(true).max())
    return min(ours), min(theirs), difference


def draw(
    network: Network, layer: Layer, pixels: torch.Tensor, seed: int
) -> tuple[NDArray, NDArray, NDArray, dict[str, NDArray]]:
    """Random winners of a layer: image, (feature, y, x), activation and switches."""
    activations, maps = {}, {}
    network.forward(
        pixels,
        [layer],
        lambda name, seen: activations.update({name: seen.numpy().copy()}),
        tuple(network.pool_windows(layer)),
        lambda name, seen: maps.update({name: seen.numpy()}),
    )
    flat = activations[layer.name].reshape(len(pixels), layer.channels, -1)
    chance = np.random.default_rng(seed)
    alive = np.argwhere(flat.max(2) > 0)
    image, feature = chance.permutation(alive)[:ZFSCALE_WINNERS].T
    place = flat[image, feature].argmax(1)
    units = np.stack([feature, place // layer.width, place % layer.width], 1)
    switches = {
        pool: np.stack(
            [crop(maps[pool][i], window, y, x) for i, (_, y, x) in zip(image, units, strict=True)]
        )
        for pool, window in network.pool_windows(layer).items()
    }
    return image, units, flat[image, feature, place], switches


def crop_window(full: NDArray, window: Window, y: int, x: int) -> NDArray:
    """The window of a unit at (y, x) from a full map (3, H, W), zero outside."""
    margin = max(window.size)
    padded = np.pad(full, ((0, 0), (margin, margin), (margin, margin)))
    top, left = (int(first) + margin for first in window.origin(y, x))
    return padded[:, top : top + window.size[0], left : left + window.size[1]]
