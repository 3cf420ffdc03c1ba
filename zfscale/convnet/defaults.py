"""Which layers an analysis observes where a job names none: the first, the last convolution, the
last hidden one.

Zeiler & Fergus (ECCV 2014) look at layers 1 and 7 of their network (Figure 5), and at layers 5 and
7 (Table 1). These functions say what that means in any network.
"""

from __future__ import annotations

from zfscale.convnet.capture import operations as ops
from zfscale.convnet.network import Network
from zfscale.errors import UsageError
from zfscale.records import Layer


def first_layer(network: Network) -> Layer:
    """The first convolution, after its rectification. Raises UsageError where there is none."""
    return network.choose(None)[0]


def last_convolution(network: Network) -> Layer:
    """The last convolution, after its rectification. Raises UsageError where there is none."""
    return network.choose(None)[-1]


def last_hidden(network: Network) -> Layer:
    """The input of the last operation with weights: the features that the classifier works on.

    The last one in the order of execution is the classifier, a fully connected layer or a
    convolution; dropout and flattening before it change no value, and are passed over. This is
    relu7 of ZFNet and AlexNet, the average pool of a residual network, and the concatenation
    before the last convolution of SqueezeNet. Raises UsageError where there is no such layer, or
    where the network cannot be traced.
    """
    if network.graph is None:
        raise UsageError(
            f"layers: model {network.name} cannot be traced, so its last hidden layer is not "
            "known: name the layers; `zfscale layers` lists them"
        )
    nodes = network.graph.nodes
    weighted = [
        node for node in nodes.values() if isinstance(node.operation, ops.Linear | ops.Convolution)
    ]
    if weighted:
        node = nodes[weighted[-1].inputs[0]]
        while isinstance(node.operation, ops.Identity | ops.Flatten):
            node = nodes[node.inputs[0]]
        if not isinstance(node.operation, ops.Input):
            return network.layer(node.name)
    raise UsageError(
        f"layers: model {network.name} has no hidden layer: name the layers; `zfscale layers` "
        "lists them"
    )
