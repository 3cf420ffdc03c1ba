"""Programs of a network that show what they compute on the way.

A traced network gets calls written into its code, so that a forward pass that is watched runs
like one that is not, or faster. Knows torch.fx; not which layers are of interest, nor why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import fx, nn

from zfscale.convnet.capture import kernels
from zfscale.convnet.capture.graph import Graph, Node
from zfscale.convnet.capture.operations import MaxPool
from zfscale.convnet.deconvolution import switches

Show = Callable[[str, torch.Tensor], None]


def program(
    module: nn.Module,
    graph: Graph,
    layers: Sequence[tuple[str, str]],
    pools: Sequence[str],
    whole: bool = True,
    gradients: bool = False,
) -> fx.GraphModule:
    """The traced `module` with two more arguments, `zf_visit` and `zf_visit_pool`.

    `layers` are pairs (name to show, node); `pools` are nodes whose switches are shown. A node
    is shown before any later operation can overwrite it. If not `whole`, the program ends with
    the last of these and gives nothing else. With `gradients` what is shown lies on the path to the
    output, and the operations are the module's own.
    """
    names = defaultdict(list)
    for name, node in layers:
        names[graph.source[node]].append(name)
    pooled = {graph.source[pool]: pool for pool in pools}
    watched = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    visitors: list[fx.Node] = []
    left = {*names, *pooled}
    for node in graph.program.nodes:
        if node.op != "placeholder" and not visitors:
            arguments = ("zf_visit", "zf_visit_pool")
            visitors = [watched.placeholder(name, default_value=None) for name in arguments]
        copies[node] = watched.node_copy(node, copies.__getitem__)
        for name in names.get(node, ()):
            if gradients:
                arguments_ = (visitors[0], name, copies[node])
                copies[node] = watched.call_function(show_on_path, arguments_)
            else:
                watched.call_function(show, (visitors[0], name, copies[node]))
        if node in pooled:
            maps = copies[node.all_input_nodes[0]]
            how = _how(graph.nodes[pooled[node]])
            watched.call_function(show_switches, (visitors[1], pooled[node], maps, *how))
        left.discard(node)
        if not (whole or left):
            watched.output(())
            break
    result = fx.GraphModule(module, watched)
    if not gradients:
        kernels.replace(result)
    return result


def single(module: nn.Module, graph: Graph, name: str) -> fx.GraphModule:
    """One operation of the traced `module` alone: a program from its input to its output."""
    node = graph.source[name]
    alone = fx.Graph()
    input_ = alone.placeholder("input")
    constants: dict[fx.Node, fx.Node] = {}
    for argument in node.all_input_nodes:
        is_constant = argument.op == "get_attr"
        constants[argument] = alone.node_copy(argument) if is_constant else input_
    alone.output(alone.node_copy(node, constants.__getitem__))
    result = fx.GraphModule(module, alone)
    kernels.replace(result)
    return result


def _how(node: Node) -> tuple[Any, ...]:
    """Kernel, stride, padding, dilation and ceil mode of a max pool, as torch takes them."""
    if not isinstance(node.operation, MaxPool):
        raise node.unsupported("only a max pool has switches")
    return (*astuple(node.operation.window), node.operation.ceil_mode)


def show(visit: Show, name: str, output: torch.Tensor) -> None:
    """Call `visit` with `output` as (B, C, H, W): tokens along the width, a vector as one unit."""
    match output.ndim:
        case 4:
            visit(name, output)
        case 3:
            visit(name, output.transpose(1, 2).unsqueeze(2))
        case 2:
            visit(name, output[:, :, None, None])


def show_on_path(visit: Show, name: str, output: torch.Tensor) -> torch.Tensor:
    """As `show`; returns what the network is to go on with, computed from what was shown.

    So there are gradients with respect to what was shown: a view beside the path to the logits has
    none. It is a copy, which operations in place may overwrite.
    """
    match output.ndim:
        case 4:
            visit(name, output)
        case 3:
            shown = output.transpose(1, 2).unsqueeze(2)
            visit(name, shown)
            output = shown.squeeze(2).transpose(1, 2)
        case 2:
            shown = output[:, :, None, None]
            visit(name, shown)
            output = shown[:, :, 0, 0]
    return output.clone()


def show_switches(visit: Show, name: str, maps: torch.Tensor, *how: Any) -> None:
    """Call `visit` with the switches of a max pool over `maps` (B, C, H, W)."""
    visit(name, switches.find(maps, *how))


def hook(
    visit: Show, name: str, gradients: bool = False
) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor | None]:
    """A forward hook that shows the output of its module under `name`."""
    if gradients:
        return lambda _module, _inputs, output: show_on_path(visit, name, output)
    return lambda _module, _inputs, output: show(visit, name, output)
