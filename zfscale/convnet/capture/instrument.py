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
) -> fx.GraphModule:
    """The traced `module` with two more arguments, `zf_visit` and `zf_visit_pool`.

    `layers` are pairs (name to show, node); `pools` are nodes whose switches are shown. A node
    is shown before any later operation can overwrite it. If not `whole`, the program ends with
    the last of these and gives nothing else.
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
    kernels.replace(result)
    return result


def single(module: nn.Module, graph: Graph, name: str) -> fx.GraphModule:
    """One operation of the traced `module` alone: a program from its input to its output."""
    node = graph.source[name]
    alone = fx.Graph()
    given = alone.placeholder("given")
    constants: dict[fx.Node, fx.Node] = {}
    for argument in node.all_input_nodes:
        known = argument.op == "get_attr"
        constants[argument] = alone.node_copy(argument) if known else given
    alone.output(alone.node_copy(node, constants.__getitem__))
    result = fx.GraphModule(module, alone)
    kernels.replace(result)
    return result


def _how(node: Node) -> tuple[Any, ...]:
    """Kernel, stride, padding, dilation and ceil mode of a max pool, as torch takes them."""
    if not isinstance(node.operation, MaxPool):
        raise node.unsupported("it has no switches, for it is no max pool")
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


def show_switches(visit: Show, name: str, maps: torch.Tensor, *how: Any) -> None:
    """Call `visit` with the switches of a max pool over `maps` (B, C, H, W)."""
    visit(name, switches.find(maps, *how))


def hook(visit: Show, name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    """A forward hook that shows the output of its module under `name`."""
    return lambda _module, _inputs, output: show(visit, name, output)
