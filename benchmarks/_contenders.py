"""Who takes part in the benchmark `peers`: each finds the k strongest images of every channel.

A contender takes `Work` and gives `Found`. Its library is imported when it is called. `contend`
runs one in a process that is its own.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import normalize

from benchmarks._decoded import batches, scan_all
from benchmarks._timing import seconds
from zfscale import models
from zfscale.convnet.network import Network
from zfscale.convnet.runtime import prepare
from zfscale.records import image_id

LAYERS = ("features.1", "features.4", "features.7", "features.9", "features.11")
"""The rectifications of the five convolutions of torchvision's AlexNet."""
Found = list[torch.Tensor]
"""Positions of the k strongest images, (channels, k), for every layer."""


@dataclass(frozen=True)
class Work:
    """What everybody is given: network, pixels (N, 3, H, W), normalised inputs, k, batch."""

    network: Network
    pixels: torch.Tensor
    inputs: torch.Tensor
    k: int
    batch: int

    def contiguous(self) -> nn.Module:
        """The module in torch's default memory format, for those who flatten with `view`."""
        return copy.deepcopy(self.network.module).to(memory_format=torch.contiguous_format)


def zfscale(work: Work) -> Found:
    rows = scan_all(work.network, batches(work.pixels, work.batch), work.k)
    position = {image_id(str(i).encode()): i for i in range(len(work.pixels))}
    ids = [f"{h:016x}{low:016x}" for h, low in zip(rows["high"], rows["low"], strict=True)]
    places = torch.tensor([position[each] for each in ids])
    channels = [layer.channels for layer in work.network.layers]
    return list(places.view(-1, work.k).split(channels))


@torch.inference_mode()
def _topk(work: Work, maxima: Callable[[torch.Tensor], list[torch.Tensor]]) -> Found:
    """The loop that a user writes around `maxima` (B, C) of every layer."""
    recipe = work.network.preprocessing
    best: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, len(work.pixels), work.batch):
        pixels = work.pixels[start : start + work.batch]
        scaled = pixels.float() * recipe.scale
        values = maxima(normalize(scaled, list(recipe.mean), list(recipe.std)))
        index = torch.arange(start, start + len(pixels))[:, None]
        new = [(value, index.expand_as(value)) for value in values]
        if best:
            new = [
                (torch.cat([a, c]), torch.cat([b, d]))
                for (a, b), (c, d) in zip(best, new, strict=True)
            ]
        top = [value.topk(min(work.k, len(value)), dim=0).indices for value, _ in new]
        best = [(v.gather(0, t), i.gather(0, t)) for (v, i), t in zip(new, top, strict=True)]
    return [index.T for _, index in best]


def _hooked(work: Work, model: nn.Module, layout: torch.memory_format) -> Found:
    kept: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name in LAYERS:

            def keep(_module: nn.Module, _inputs: object, out: torch.Tensor, name: str = name):
                kept[name] = out.amax((2, 3))

            handle = model.get_submodule(name).register_forward_hook(keep)
            stack.callback(handle.remove)

        def maxima(inputs: torch.Tensor) -> list[torch.Tensor]:
            model(inputs.contiguous(memory_format=layout))
            return [kept[name] for name in LAYERS]

        return _topk(work, maxima)


def plain_loop(work: Work) -> Found:
    return _hooked(work, work.contiguous(), torch.contiguous_format)


def plain_loop_channels_last(work: Work) -> Found:
    return _hooked(work, work.network.module, torch.channels_last)


def captum(work: Work) -> Found:
    from captum.attr import LayerActivation

    model = work.contiguous()
    observed = LayerActivation(model, [model.get_submodule(name) for name in LAYERS])
    return _topk(work, lambda inputs: [maps.amax((2, 3)) for maps in observed.attribute(inputs)])


def semanticlens(work: Work) -> Found:
    from semanticlens.component_visualization import ActivationComponentVisualizer, aggregators

    data = TensorDataset(work.inputs, torch.zeros(len(work.inputs)))
    model = work.contiguous()
    data.name, model.name = "images", "alexnet"
    visualizer = ActivationComponentVisualizer(
        model, data, data, list(LAYERS), work.k, "cpu", aggregators.aggregate_conv_max
    )
    found = visualizer.run(batch_size=work.batch)
    return [found[name].sample_ids for name in LAYERS]


def zennit_crp(work: Work) -> Found:
    from crp.attribution import CondAttribution
    from crp.concepts import ChannelConcept
    from crp.helper import load_maximization
    from crp.visualization import FeatureVisualization

    data = TensorDataset(work.inputs, torch.zeros(len(work.inputs), dtype=torch.int64))
    concepts = {name: ChannelConcept() for name in LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        attribution = CondAttribution(work.contiguous())
        view = FeatureVisualization(
            attribution, data, concepts, max_target="max", abs_norm=False, path=folder
        )
        view.run(None, 0, len(data), batch_size=work.batch)
        kept = [load_maximization(Path(view.ActMax.PATH), name)[0] for name in LAYERS]
        return [torch.tensor(ids[: work.k]).T for ids in kept]


def contend(name: str, pixels: str, k: int, batch: int, threads: int) -> tuple[float, Found]:
    """Let one contender do the work in this process: the seconds it took, and what it found.

    `pixels` is the file of all images. zfscale sets its process up as its workers are.
    """
    torch.set_num_threads(threads)
    if name == zfscale.__name__:
        prepare(threads)
    network = models.load("torchvision:alexnet", "seed:0")
    every = torch.load(pixels, weights_only=True)
    if name != zfscale.__name__:
        every = every.contiguous()
    work = Work(network, every, network.normalise(every).contiguous(), k, batch)
    found: list[Found] = []
    do = next(each for each in CONTENDERS if each.__name__ == name)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # Once without the clock: caches are warm, kernels chosen.
        do(replace(work, pixels=every[: 2 * batch], inputs=work.inputs[: 2 * batch]))
        taken = seconds(lambda: found.append(do(work)))
    return taken, found[0]


CONTENDERS: dict[Callable[[Work], Found], str | None] = {
    zfscale: None,
    plain_loop: None,
    plain_loop_channels_last: None,
    captum: "captum",
    semanticlens: "semanticlens",
    zennit_crp: "crp",
}
"""Who takes part, and the module that has to be installed for it."""
