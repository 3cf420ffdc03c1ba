"""Slow, literal references for the deconvnet, written apart from the package's own graph.

`by_autograd` runs the full maps of a real network backward with the ReLU and the normalisations
replaced by what Zeiler & Fergus (2014), section 2.1, say of them. `by_loops` does the same for
a chain of layers with nothing but loops over NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from zfscale.convnet.capture.geometry import reached, spatial_size
from zfscale.convnet.capture.graph import Graph
from zfscale.convnet.deconvolution.deconvnet import Deconvnet
from zfscale.convnet.deconvolution.switches import crop
from zfscale.convnet.network import Network
from zfscale.records import Box, Layer, Preprocessing


class Rectify(torch.autograd.Function):
    """Forward a ReLU; backward a ReLU too, of the signal alone."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, signal):
        return signal.clamp(min=0)


class PassThrough(torch.autograd.Function):
    """Forward any function; backward the signal unchanged."""

    @staticmethod
    def forward(ctx, x, function):
        return function(x)

    @staticmethod
    def backward(ctx, signal):
        return signal, None


def _normalise(module, x):
    return PassThrough.apply(
        x,
        lambda x: LOCAL_RESPONSE_NORM(x, module.size, module.alpha, module.beta, module.k),
    )


LOCAL_RESPONSE_NORM = functional.local_response_norm


@contextmanager
def deconvolution() -> Iterator[None]:
    """Inside, the backward pass of every network is its deconvnet."""
    with (
        mock.patch.object(nn.ReLU, "forward", lambda self, x: Rectify.apply(x)),
        mock.patch.object(functional, "relu", lambda x, inplace=False: Rectify.apply(x)),
        mock.patch.object(nn.LocalResponseNorm, "forward", _normalise),
    ):
        yield


def by_autograd(
    module: nn.Module, place: str, image: torch.Tensor, units: list[tuple[int, int, int]]
) -> np.ndarray:
    """Project `units` (c, y, x) of what module `place` returns; full maps (n, 3, H, W)."""
    seen = {}
    hook = module.get_submodule(place).register_forward_hook(
        lambda module, inputs, output: seen.update(output=output)
    )
    image = image.clone().requires_grad_()
    with deconvolution():
        module(image)
        output = seen["output"].reshape(
            *seen["output"].shape[1:], *([1] * (4 - seen["output"].ndim))
        )
        signals = [
            torch.autograd.grad(output[unit], image, output[unit].detach(), retain_graph=True)[0]
            for unit in units
        ]
    hook.remove()
    return torch.cat(signals).numpy()


def by_loops(layers: list[tuple], image: np.ndarray, unit: tuple[int, int, int], mode: str):
    """Project `unit` (c, y, x) of the last of `layers`, each one of

    ("conv", weight, bias, stride, padding), ("relu",), ("pool", kernel, stride).
    Returns the full map (C, H, W) of the input.
    """
    maps, memory = image, []
    for kind, *how in layers:
        memory.append(maps.shape)
        if kind == "conv":
            maps = _conv(maps, *how)
        elif kind == "relu":
            maps = np.maximum(maps, 0)
        else:
            maps, where = _pool(maps, *how)
            memory[-1] = (maps.shape, where, memory[-1])
    signal = np.zeros_like(maps)
    signal[unit] = maps[unit]
    for (kind, *how), seen in zip(reversed(layers), reversed(memory), strict=True):
        if kind == "conv":
            signal = _conv_transposed(signal, seen, how[0], how[2], how[3])
        elif kind == "relu":
            signal = np.maximum(signal, 0)
        else:
            signal = _unpool(signal, seen[1], seen[2], mode)
    return signal


def _conv(maps, weight, bias, stride, padding):
    padded = np.pad(maps, ((0, 0), (padding, padding), (padding, padding)))
    features, _, k, _ = weight.shape
    height, width = ((size - k) // stride + 1 for size in padded.shape[1:])
    out = np.zeros((features, height, width))
    for f in range(features):
        for y in range(height):
            for x in range(width):
                window = padded[:, y * stride : y * stride + k, x * stride : x * stride + k]
                out[f, y, x] = (window * weight[f]).sum() + bias[f]
    return out


def _conv_transposed(signal, shape, weight, stride, padding):
    k = weight.shape[2]
    # Room for windows that hang over the border; what falls there is not part of the map.
    room = np.zeros((shape[0], shape[1] + 2 * padding + k, shape[2] + 2 * padding + k))
    for f in range(signal.shape[0]):
        for y in range(signal.shape[1]):
            for x in range(signal.shape[2]):
                top, left = y * stride, x * stride
                room[:, top : top + k, left : left + k] += signal[f, y, x] * weight[f]
    return room[:, padding : padding + shape[1], padding : padding + shape[2]]


def _pool(maps, k, stride):
    """Max pooling in ceil mode; also where each maximum was found, in raster order the first."""
    channels, height, width = maps.shape
    rows, columns = (-(-(size - k) // stride) + 1 for size in (height, width))
    out, where = np.zeros((channels, rows, columns)), {}
    for c in range(channels):
        for y in range(rows):
            for x in range(columns):
                best = None
                for i in range(y * stride, min(y * stride + k, height)):
                    for j in range(x * stride, min(x * stride + k, width)):
                        if best is None or maps[c, i, j] > maps[c][best]:
                            best = (i, j)
                out[c, y, x], where[c, y, x] = maps[c][best], best
    return out, where


def _unpool(signal, where, shape, mode):
    out = np.zeros(shape)
    for (c, y, x), (i, j) in where.items():  # raster order
        if mode == "accumulate":
            out[c, i, j] += signal[c, y, x]
        elif signal[c, y, x] != 0:
            out[c, i, j] = signal[c, y, x]
    return out


def network(module: nn.Module, side: int, name: str = "net") -> Network:
    """`module` for images of side x side, with pixels of about -1 to 1."""
    return Network(module, Preprocessing(side, (side, side), (127.5,) * 3, (127.5,) * 3), name)


def image(side: int, seed: int = 0) -> torch.Tensor:
    """Random pixels (1, 3, side, side), uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=generator)


def positions(height: int, width: int) -> list[tuple[int, int]]:
    """The corners, the middle of each border, and the centre."""
    ys, xs = ({0, size // 2, size - 1} for size in (height, width))
    return [(y, x) for y in sorted(ys) for x in sorted(xs)]


def observe(net: Network, layer: Layer, pixels: torch.Tensor):
    """Activations (C, H, W) and switch maps of the pools below, as the package sees them."""
    activations, maps = {}, {}
    net.forward(
        pixels,
        [layer],
        lambda name, seen: activations.update({name: seen[0].clone()}),
        tuple(net.pool_windows(layer)),
        lambda name, seen: maps.update({name: seen[0].numpy()}),
    )
    return activations[layer.name], maps


def receptive_field(graph: Graph, name: str, y: int, x: int, below: str | None = None):
    """The smallest box of a node `below` (the input) that the unit at (y, x) of `name` sees."""
    below = graph.input if below is None else below
    one_by_one = [np.eye(size, dtype=bool) for size in spatial_size(graph.nodes[below])]
    reach = reached(graph, below, *one_by_one, name).get(name)
    if reach is None:
        return None
    rows, columns = np.flatnonzero(reach[0][:, y]), np.flatnonzero(reach[1][:, x])
    if not len(rows) or not len(columns):
        return None
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def strongest(activations: torch.Tensor) -> list[tuple[int, int, int]]:
    """At each position of interest the most active feature: (c, y, x)."""
    places = positions(*activations.shape[1:])
    return [(int(activations[:, y, x].argmax()), y, x) for y, x in places]


def project(
    net: Network,
    layer: Layer,
    pixels: torch.Tensor,
    units: list[tuple[int, int, int]],
    unpooling: str = "accumulate",
) -> np.ndarray:
    """The package's projections of `units`, laid back into full images (n, 3, H, W)."""
    activations, maps = observe(net, layer, pixels)
    deconvnet = Deconvnet.of(net, layer, unpooling)
    c, y, x = np.array(units).T
    switches = {
        pool: np.stack([crop(maps[pool], window, y_, x_) for _, y_, x_ in units])
        for pool, window in net.pool_windows(layer).items()
    }
    values = np.array([float(activations[unit]) for unit in units], np.float32)
    crops = deconvnet.project(c, values, y, x, switches)
    window, (height, width) = net.window(layer), net.preprocessing.crop
    room = np.zeros((len(units), 3, height + 2 * window.size[0], width + 2 * window.size[1]))
    for out, part, unit in zip(room, crops, units, strict=True):
        top, left = (
            first + size for first, size in zip(window.origin(*unit[1:]), window.size, strict=True)
        )
        out[:, top : top + window.size[0], left : left + window.size[1]] = part
    inner = room[:, :, window.size[0] :, window.size[1] :][:, :, :height, :width].copy()
    room[
        :, :, window.size[0] : window.size[0] + height, window.size[1] : window.size[1] + width
    ] = 0
    assert not room.any(), "a projection has signal outside the image"
    return inner


def error(found: np.ndarray, true: np.ndarray) -> float:
    """The largest difference, relative to the largest value of each projection."""
    largest = np.abs(true).max((1, 2, 3), keepdims=True)
    assert (largest > 0).all(), "a projection is empty: the comparison would show nothing"
    return float((np.abs(found - true) / largest).max())
