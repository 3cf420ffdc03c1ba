"""deconvolve: project the winners of every feature down to pixels.

Zeiler & Fergus (ECCV 2014), section 2.1: start from one activation, unpool by the switches,
rectify, filter with the transposed weights, down to the image. Works from stored records
alone, on the crop that is the receptive field of the unit, and reads no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from zfscale.analyses.scan.tables import WINNERS
from zfscale.analysis import Analysis, Context, Output, View
from zfscale.convnet.deconvolution.deconvnet import Deconvnet
from zfscale.convnet.network import Network
from zfscale.records import Array, Block, Layer, Task

SHARD_BYTES = 64 << 20
"""Projections in one task and one shard of an array, before compression."""
FEATURES = 64
"""Features in one task at most, so that narrow layers still spread over the workers."""


class Options(BaseModel, frozen=True, extra="forbid"):
    """Options of `deconvolve` in a job file."""

    unpooling: Literal["accumulate", "place"] = Field(
        default="accumulate",
        description="Where two windows of overlapping pools send their maxima to one pixel: add "
        "them (the backward pass of max pooling), or let the later one overwrite.",
    )


class Deconvolve(Analysis[Options]):
    """Projections of all winners, over blocks of features."""

    kind = "deconvolve"
    Options = Options
    needs = ("scan", "switches")

    def check(self, view: View) -> None:
        """Raises UnsupportedOperation if a layer cannot be deconvolved."""
        for name in view.layers:
            Deconvnet.of(view.network, view.network.layer(name), self.options.unpooling)

    def memory(self, network: Network) -> int:
        """The projections of one task."""
        return SHARD_BYTES

    def plan(self, view: View) -> Sequence[Task]:
        """One task for every shard of projections that has a winner."""
        winners = view.table("scan", WINNERS)
        names = ("feature", "rank", "score", "y", "x")
        tasks = []
        for array in self.arrays(view):
            layer = array.path.split("/")[1]
            for start in range(0, array.shape[0], array.shard):
                stop = min(start + array.shard, array.shape[0])
                in_shard = (winners["layer"] == layer) & (winners["feature"] >= start)
                in_shard &= winners["feature"] < stop
                if in_shard.any():
                    units = {name: winners[name][in_shard].tolist() for name in names}
                    block = {"layer": layer, "start": start, "stop": stop, "k": array.shape[1]}
                    tasks.append(self.task(payload=block | units))
        return tasks

    def arrays(self, view: View) -> Sequence[Array]:
        """One array a layer: (features, k, h, w, 3), the receptive field in input pixels."""
        winners = view.table("scan", WINNERS)
        if not len(winners["rank"]):
            return []
        k = int(winners["rank"].max()) + 1
        layers = [view.network.layer(name) for name in sorted(set(winners["layer"].tolist()))]
        return [_array(layer, view.network.window(layer).size, k) for layer in layers]

    def run(self, context: Context, task: Task) -> Output:
        """Project the winners of a block of features."""
        work = task.payload
        layer = context.network.layer(work["layer"])
        deconvnet = Deconvnet.of(context.network, layer, self.options.unpooling)
        feature, rank = np.array(work["feature"]), np.array(work["rank"])
        row = feature - work["start"]
        switches = {
            pool: context.read(
                "switches", f"switches.zarr/{layer.name}/{pool}", work["start"], work["stop"]
            )
            for pool in deconvnet.pools
        }
        array = _array(layer, deconvnet.field, work["k"])
        data = np.zeros((work["stop"] - work["start"], *array.shape[1:]), np.float32)
        pixels = deconvnet.project(
            feature,
            np.array(work["score"], np.float32),
            np.array(work["y"]),
            np.array(work["x"]),
            {pool: records[row, rank] for pool, records in switches.items()},
        )
        colours = slice(None, None, -1 if context.network.preprocessing.order == "BGR" else 1)
        data[row, rank] = pixels[:, colours].transpose(0, 2, 3, 1)
        return Output(blocks=[Block(array, work["start"], data)])


def _array(layer: Layer, field: tuple[int, int], k: int) -> Array:
    size = k * field[0] * field[1] * 3 * 4
    shard = max(1, min(layer.channels, FEATURES, SHARD_BYTES // size))
    path = f"projections.zarr/{layer.name}"
    return Array(
        path=path,
        shape=(layer.channels, k, *field, 3),
        dtype="float32",
        shard=shard,
        fill=0,
        axes=("y", "x", "colour"),
        meaning="projection of the unit onto its receptive field, in the normalised input, RGB",
    )
