"""A network as a table: one row a layer, for `zfscale layers MODEL` and for choosing `layers:`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.network import Network
from zfscale.errors import UsageError
from zfscale.records import Layer


@dataclass(frozen=True, slots=True)
class Row:
    """One layer: `channels` features of `height` x `width` units.

    `stride` and `field` (side of the receptive field) are in input pixels, (y, x), or None
    where the geometry is not known; a unit that sees the whole image has stride 0.
    `observed` tells whether a scan takes it by default.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    stride: tuple[int, int] | None
    field: tuple[int, int] | None
    observed: bool


def table(network: Network) -> list[Row]:
    """Every layer that can be observed, in the order of execution.

    In a net that cannot be traced these are its modules without parts, as they were defined.
    """
    observed = {layer.name for layer in network.layers}
    rows = []
    for name, kind in _kinds(network):
        layer = _layer(network, name)
        if layer is not None:
            size = (layer.channels, layer.height, layer.width)
            rows.append(Row(name, kind, *size, layer.stride, layer.field, name in observed))
    return rows


def _kinds(network: Network) -> Iterator[tuple[str, str]]:
    """Name and kind of everything that computes: no input, no dropout."""
    if network.graph is None:
        for name, module in network.module.named_modules():
            if name and not any(module.children()):
                yield name, type(module).__name__
        return
    for node in network.graph.nodes.values():
        operation = node.operation
        if isinstance(operation, ops.Pointwise | ops.Opaque):
            yield node.name, operation.name
        elif not isinstance(operation, ops.Input | ops.Identity):
            yield node.name, _words(type(operation).__name__)


def _words(name: str) -> str:
    """MaxPool becomes max pool."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _layer(network: Network, name: str) -> Layer | None:
    """The layer, or None where there are no features to observe: a list, a module never called."""
    try:
        return network.layer(name)
    except UsageError:
        return None
