"""A network ready to be observed: one forward pass that shows chosen layers as they appear.

Knows torch and the graph; not where weights come from, nor what is done with activations.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from zfscale.convnet.capture import geometry, instrument
from zfscale.convnet.capture import operations as ops
from zfscale.convnet.capture.graph import Graph, Shape, UntraceableError, trace
from zfscale.errors import UnsupportedOperation, UsageError
from zfscale.records import Layer, Preprocessing

Visit = Callable[[str, torch.Tensor], None]
"""Called with the name of a layer (or pool) and its activations, as soon as they exist."""


def _ignore(name: str, values: torch.Tensor) -> None:
    del name, values


class Network:
    """A module in evaluation mode on a device, with its preprocessing and its graph.

    `graph` is None where torch.fx cannot trace the module, and `untraceable` then says why: it
    can still be observed, but not deconvolved. `classes` is the number of logits, or None
    where the output is not (B, classes).
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        name: str = "network",
        device: str | torch.device = "cpu",
    ) -> None:
        """Move `module` to `device` and run it once to find its shapes.

        Raises UsageError if it does not take images of the size of the preprocessing.
        """
        self.name = name
        self.preprocessing = preprocessing
        self.device = torch.device(device)
        self.module = module.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._calls: Counter[str] = Counter()  # how often each module runs in a forward pass
        self._shapes, self.classes = self._try_out()
        self.graph: Graph | None = None
        self.untraceable: str | None = None
        try:
            self.graph = trace(self.module, (3, *preprocessing.crop))
        except UntraceableError as error:
            self.untraceable = str(error)
        self._programs: dict[tuple[Any, ...], fx.GraphModule] = {}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every convolution after its rectification, in the order of execution.

        Where two arrive at one place (the end of a residual block), the first gives the name.
        In a net that cannot be traced: the output of every convolution module, as it is.
        """
        if self.graph is None:
            modules = dict(self.module.named_modules())
            convolutions = [name for name in self._shapes if isinstance(modules[name], nn.Conv2d)]
            return tuple(self.layer(name) for name in convolutions)
        by_node: dict[str | None, Layer] = {}
        for node in self.graph.nodes.values():
            if isinstance(node.operation, ops.Convolution):
                layer = self.layer(node.name)
                by_node.setdefault(layer.node, layer)
        return tuple(by_node.values())

    def choose(self, names: Sequence[str] | None) -> tuple[Layer, ...]:
        """The layers of the given names, or the default ones for None.

        Raises UsageError for an unknown name, and where there is no default one.
        """
        if names is not None:
            return tuple(self.layer(name) for name in names)
        if not self.layers:
            raise UsageError(
                f"model {self.name} has no convolution to observe: name its layers, "
                "e.g. analyses.scan.layers: [NAME]; `zfscale layers` lists them"
            )
        return self.layers

    def layer(self, name: str) -> Layer:
        """The layer of that module: a convolution after its rectification, else its raw output.

        The activations of a module that is called several times are those of its last call.
        Raises UsageError for an unknown name, or where there are no features to observe.
        """
        if self.graph is None:
            return Layer(name, None, *self._features(name, self._shapes), None, None)
        shapes = {path: self.graph.nodes[at].shape for path, at in self.graph.modules.items()}
        shapes |= {node.name: node.shape for node in self.graph.nodes.values()}
        features = self._features(name, shapes)
        place = self.graph.modules.get(name, name)
        if isinstance(self.graph.nodes[place].operation, ops.Convolution):
            place = self.graph.rectified(place)
        stride, field = self._stride_and_field(place)
        return Layer(name, place, *features, stride, field)

    def window(self, layer: Layer) -> geometry.Window:
        """The receptive field of the layer's units in the input. Raises UnsupportedOperation."""
        return self._windows(layer)[self.traced.input]

    def pool_windows(self, layer: Layer) -> dict[str, geometry.Window]:
        """For each max pool below the layer, the first one first, the window of its switches that
        a unit needs.

        Raises UnsupportedOperation.
        """
        windows = self._windows(layer)
        nodes = self.traced.nodes
        return {
            name: windows[name]
            for name in nodes
            if name in windows and isinstance(nodes[name].operation, ops.MaxPool)
        }

    def switch_shapes(self, layer: Layer) -> dict[str, tuple[int, int, int]]:
        """For each max pool below the layer the shape (C, h, w) of a winner's switches."""
        return {
            name: (self.traced.nodes[name].shape[0], *window.size)
            for name, window in self.pool_windows(layer).items()
        }

    @property
    def traced(self) -> Graph:
        """The graph. Raises UnsupportedOperation where there is none."""
        if self.graph is None:
            raise UnsupportedOperation(
                f"model {self.name} can be scanned, but here its graph of operations is needed, "
                f"and torch.fx cannot trace it: {self.untraceable}"
            )
        return self.graph

    @cached_property
    def bytes_per_image(self) -> int:
        """The most bytes of maps that one image needs at one time in a forward pass, at least.

        Each map is held from the operation that makes it to the last one that reads it; in a
        network that cannot be traced the two largest outputs of modules are counted.
        """
        if self.graph is None:
            sizes = sorted(math.prod(shape) for shape in self._shapes.values())
            return 4 * sum(sizes[-2:])
        nodes = self.graph.nodes
        last = {name: name for name in nodes}
        for node in nodes.values():
            last |= dict.fromkeys(node.inputs, node.name)
        held = most = 0
        for node in nodes.values():
            held += math.prod(node.shape)
            most = max(most, held)
            held -= sum(math.prod(nodes[name].shape) for name in nodes if last[name] == node.name)
        return 4 * most

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """The network's input for `pixels`, uint8 (B, 3, H, W) RGB: float, channels last."""
        recipe = self.preprocessing
        if recipe.order == "BGR":
            pixels = pixels.flip(1)
        image = pixels.to(self.device).to(torch.float32, memory_format=torch.channels_last)
        gain = [recipe.scale / std for std in recipe.std]
        bias = [-mean / std for mean, std in zip(recipe.mean, recipe.std, strict=True)]
        # A row of pixels at a time: arithmetic on three channels in turn would take longer.
        width = pixels.shape[3]
        rows = image.permute(0, 2, 3, 1).view(-1, 3 * width)
        rows.mul_(torch.tensor(gain * width, device=self.device))
        rows.add_(torch.tensor(bias * width, device=self.device))
        return image

    def forward(self, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `run`, for `pixels` uint8 (B, 3, H, W) RGB."""
        return self.run(self.normalise(pixels), *args, **kwargs)

    def run(
        self,
        image: torch.Tensor,
        layers: Sequence[Layer] = (),
        visit: Visit = _ignore,
        pools: Sequence[str] = (),
        visit_pool: Visit = _ignore,
        *,
        gradients: bool = False,
    ) -> torch.Tensor:
        """The output for a normalised `image`, float (B, 3, H, W); logits are (B, classes).

        Calls `visit(name, activations)` with activations (B, C, H, W) the moment a layer's
        output exists; tokens (B, T, C) are shown as (B, C, 1, T), vectors as (B, C, 1, 1). What is
        shown may be overwritten later: copy what is to be kept. Calls `visit_pool(name, switches)`
        with switches uint8 (B, C, h, w) for the named pools of the graph.

        By default this runs in inference mode. With `gradients` torch records the operations: the
        output depends on `image`, if that requires gradients, and on all that is shown, which is
        then not overwritten, so `torch.autograd.grad(output[:, c].sum(), activations)` works.
        Operations are those of the module then, so last bits may differ from the default.
        """
        with torch.inference_mode(not gradients):
            if gradients:
                leaf = image if image.requires_grad else image.clone().requires_grad_()
                image = leaf.clone()  # networks may write over their input, which no leaf allows
            if self.graph is None and not pools:
                return self._run_with_hooks(image, layers, visit, gradients)
            wanted = tuple((layer.name, str(layer.node)) for layer in layers)
            key = (wanted, tuple(pools), gradients)
            if key not in self._programs:
                self._programs[key] = instrument.program(
                    self.module, self.traced, wanted, pools, gradients=gradients
                )
            program = self._programs[key]
            output: torch.Tensor = program(image, zf_visit=visit, zf_visit_pool=visit_pool)
            return output

    def _run_with_hooks(
        self, image: torch.Tensor, layers: Sequence[Layer], visit: Visit, gradients: bool
    ) -> torch.Tensor:
        calls_left = Counter({layer.name: self._calls[layer.name] for layer in layers})

        def show_last(name: str, activations: torch.Tensor) -> None:
            calls_left[name] -= 1
            if calls_left[name] == 0:
                visit(name, activations)

        with ExitStack() as stack:
            for layer in layers:
                module = self.module.get_submodule(layer.name)
                hook = instrument.hook(show_last, layer.name, gradients)
                stack.callback(module.register_forward_hook(hook).remove)
            output: torch.Tensor = self.module(image)
        for name, times in calls_left.items():
            if times:
                raise UsageError(
                    f"layer {name} of {self.name} was called {self._calls[name] - times} times for "
                    f"this batch, but {self._calls[name]} times for a blank image: a layer can be "
                    "observed only if it is called equally often for all images"
                )
        return output

    def _try_out(self) -> tuple[dict[str, Shape], int | None]:
        """Output shapes of all modules that run and give one tensor, and the number of classes.

        Counts in `_calls` how often each of them runs.
        """
        shapes: dict[str, Shape] = {}

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor):
                    shapes[name] = tuple(output.shape[1:])
                    self._calls[name] += 1

            return note

        size = self.preprocessing.crop
        with ExitStack() as stack:
            for name, module in self.module.named_modules():
                stack.callback(module.register_forward_hook(hook(name)).remove)
            try:
                with torch.inference_mode():
                    output = self.module(torch.zeros(2, 3, *size, device=self.device))
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                raise UsageError(
                    f"model {self.name} does not take images (B, 3, {size[0]}, {size[1]}): {error}"
                ) from error
        if not isinstance(output, torch.Tensor):
            raise UsageError(
                f"model {self.name} returns {type(output).__name__}; wrap it in a module that "
                f"returns one tensor, the logits (B, classes)"
            )
        return shapes, output.shape[1] if output.ndim == 2 else None

    def _features(self, name: str, shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
        """Channels, height and width of the output at `name`."""
        match shapes.get(name):
            case (channels, height, width):
                return channels, height, width
            case (tokens, channels):
                return channels, 1, tokens
            case (channels,):
                return channels, 1, 1
        if name in shapes:
            raise UsageError(
                f"layer {name} of {self.name} has an output of shape (B, "
                f"{', '.join(map(str, shapes[name]))}); features can be observed in (B, C, H, W), "
                "tokens (B, T, C) or vectors (B, C)"
            )
        if name in dict(self.module.named_modules()):
            raise UsageError(
                f"layer {name} of {self.name} is never called, or does not return a tensor"
            )
        close = difflib.get_close_matches(name, shapes, n=8) or list(shapes)
        raise UsageError(f"layer {name}: {self.name} has no such module; it has {', '.join(close)}")

    def _stride_and_field(self, node: str) -> tuple[ops.Pair | None, ops.Pair | None]:
        try:
            window = geometry.windows(self.traced, node, whole=False)[self.traced.input]
        except UnsupportedOperation:
            return None, None
        return window.stride, window.size

    def _windows(self, layer: Layer) -> dict[str, geometry.Window]:
        return geometry.windows(self.traced, str(layer.node))
