"""All top-9 projections of ZFNet's five layers: zfscale against Captum's NeuronDeconvolution.

12,384 winners (96, 256, 384, 384 and 256 features, nine each), ZFNet without contrast
normalisation, which Captum would differentiate. Captum gives the gradient of a unit on the full
map and needs a forward pass for each; zfscale works from switches, so its own forward pass over the
winning images is timed too, once an image. A sample of winners is measured in each layer, both
tools in turn within one run, and weighed by the number of winners of the layer.

    python benchmarks/deconvolution.py
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from captum.attr import NeuronDeconvolution

from zfscale.convnet.deconvnet import Deconvnet
from zfscale.convnet.network import Layer, Network
from zfscale.convnet.switches import crop
from zfscale.models import zfnet

TOP_K = 9
IMAGES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--winners", type=int, default=192, help="sample of each layer, for zfscale"
    )
    parser.add_argument("--captum", type=int, default=6, help="of these, given to Captum a round")
    parser.add_argument("--rounds", type=int, default=5, help="the median round counts")
    options = parser.parse_args()
    torch.manual_seed(0)
    module = zfnet.build(classes=1000, normalisation=False)
    for part in module:
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
    network = Network(module, zfnet.PREPROCESSING, "zfnet")
    pixels = torch.randint(0, 256, (IMAGES, 3, 224, 224), dtype=torch.uint8)
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds")
    print("layer  winners  zfscale ms  captum ms  ratio  greatest difference")
    totals = np.zeros(2)
    for layer in network.layers:
        ours, theirs, difference = compare(network, layer, pixels, options)
        winners = layer.channels * TOP_K
        totals += winners * np.array([ours, theirs])
        print(
            f"{layer.name:6} {winners:7} {ours * 1e3:11.3f} {theirs * 1e3:10.2f} "
            f"{theirs / ours:6.1f}  {difference:.1e}"
        )
    print(f"all    {'':7} {totals[0]:9.1f} s {totals[1]:8.1f} s {totals[1] / totals[0]:6.1f}")


def compare(
    network: Network, layer: Layer, pixels: torch.Tensor, options: argparse.Namespace
) -> tuple[float, float, float]:
    """Median seconds a winner, of zfscale and of Captum, and how far apart their results are."""
    image, units, values, switches = draw(network, layer, pixels, options.winners)
    deconvnet = Deconvnet.of(network, layer)
    neuron = NeuronDeconvolution(network.module, network.module.get_submodule(str(layer.node)))
    inputs = network.normalise(pixels)
    window = network.window(layer)
    ours, theirs, difference = [], [], 0.0
    for round_ in range(options.rounds + 1):
        begun = time.perf_counter()
        found = deconvnet.project(units[:, 0], values, units[:, 1], units[:, 2], switches)
        ours.append((time.perf_counter() - begun) / len(units))
        sample = [(round_ * options.captum + i) % len(units) for i in range(options.captum)]
        begun = time.perf_counter()
        attributed = [
            neuron.attribute(inputs[image[i]][None], tuple(units[i].tolist())) for i in sample
        ]
        theirs.append((time.perf_counter() - begun) / len(sample))
        for i, gradient in zip(sample, attributed, strict=True):
            true = cut(gradient[0].detach().numpy() * values[i], window, *units[i, 1:])
            difference = max(difference, np.abs(found[i] - true).max() / np.abs(true).max())
    # The first round warms caches and allocators.
    return float(np.median(ours[1:])), float(np.median(theirs[1:])), difference


def draw(network: Network, layer: Layer, pixels: torch.Tensor, winners: int):
    """Random winners of a layer: image, (feature, y, x), activation and switches."""
    activations, maps = {}, {}
    network.forward(
        pixels,
        [layer],
        lambda name, seen: activations.update({name: seen.numpy().copy()}),
        network.pools_below(layer),
        lambda name, seen: maps.update({name: seen.numpy()}),
    )
    flat = activations[layer.name].reshape(len(pixels), layer.channels, -1)
    chance = np.random.default_rng(0)
    alive = np.argwhere(flat.max(2) > 0)
    image, feature = chance.permutation(alive)[:winners].T
    place = flat[image, feature].argmax(1)
    units = np.stack([feature, place // layer.width, place % layer.width], 1)
    switches = {
        pool: np.stack(
            [crop(maps[pool][i], window, y, x) for i, (_, y, x) in zip(image, units, strict=True)]
        )
        for pool, window in network.pool_windows(layer).items()
    }
    return image, units, flat[image, feature, place], switches


def cut(full: np.ndarray, window, y: int, x: int) -> np.ndarray:
    """The window of a unit at (y, x) from a full map (3, H, W), zero outside."""
    margin = max(window.size)
    padded = np.pad(full, ((0, 0), (margin, margin), (margin, margin)))
    top, left = (int(first) + margin for first in window.origin(y, x))
    return padded[:, top : top + window.size[0], left : left + window.size[1]]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="Setting backward hooks")
    main()
