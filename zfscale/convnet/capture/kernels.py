"""Operations of torch that take less time on a CPU if they are written otherwise.

They stand in for the functions of the same names in `torch.nn.functional`, without gradients;
elsewhere than on a CPU, and for inputs other than a batch of float32 maps or vectors, they are
these functions. How much faster they are stands in docs/log.md. Knows torch only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

GROUPS = 64 * 12
"""A multiple of the vectors that torch computes at a time, for each of up to four threads."""


def linear(
    input: torch.Tensor,  # noqa: A002 (torch calls it so, and it may be given by name)
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """A fully connected layer: `input` (B, K), `weight` (N, K), `bias` (N,) or None.

    A batch is much smaller than the weights, so these come first in the product. That may change
    the last bits of the result.
    """
    if not _is_faster_here(input, 2) or bias is None:
        return functional.linear(input, weight, bias)
    return torch.addmm(bias[:, None], weight, input.t()).t().contiguous()


def local_response_norm(
    input: torch.Tensor,  # noqa: A002
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> torch.Tensor:
    """Local response normalisation of `input` (B, C, H, W) over `size` neighbouring channels.

    The same arithmetic in the same order as torch's, an image at a time: that fits in a cache,
    and makes an image's result independent of its place in the batch.
    """
    if not _is_faster_here(input, 4):
        return functional.local_response_norm(input, size, alpha, beta, k)
    # Channels last, the sum over neighbouring channels is a sum of shifted copies of the squares.
    # torch computes powers in groups, and what is left over at the end of a thread's part by
    # another routine, whose last bit may differ. Here nothing is left over, whatever the shape.
    _, channels, height, width = input.shape
    output = torch.empty_like(input)
    units = channels * height * width
    powers = input.new_ones(-(-units // GROUPS) * GROUPS)
    total = powers[:units].view(height, width, channels)
    for image, result in zip(input.permute(0, 2, 3, 1), output.permute(0, 2, 3, 1), strict=True):
        squares = functional.pad(image * image, (size // 2, (size - 1) // 2))
        total.copy_(squares[..., :channels])
        for shift in range(1, size):
            total.add_(squares[..., shift : shift + channels])
        total.div_(size).mul_(alpha).add_(k)
        powers.pow_(beta)
        torch.div(image, total, out=result)
    return output


def _is_faster_here(values: torch.Tensor, dimensions: int) -> bool:
    if values.ndim != dimensions or values.dtype is not torch.float32:
        return False
    return values.device.type == "cpu"


_FUNCTIONS: dict[Any, Callable[..., torch.Tensor]] = {
    functional.linear: linear,
    functional.local_response_norm: local_response_norm,
}


def replace(program: fx.GraphModule) -> None:
    """Let a traced program call the functions of this module where it calls those of torch.

    A module that does more than its class says (by a hook, a patch or as a subclass) is left
    alone.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function":
            node.target = _FUNCTIONS.get(node.target, node.target)
        if node.op != "call_module" or len(node.args) != 1:
            continue
        called = program.get_submodule(node.target)
        if called._forward_hooks or called._forward_pre_hooks or "forward" in vars(called):
            continue
        with graph.inserting_before(node):
            if type(called) is nn.Linear:
                names = [name for name in ("weight", "bias") if getattr(called, name) is not None]
                weights = (graph.get_attr(f"{node.target}.{name}") for name in names)
                own = graph.call_function(linear, (*node.args, *weights))
            elif type(called) is nn.LocalResponseNorm:
                how = (called.size, called.alpha, called.beta, called.k)
                own = graph.call_function(local_response_norm, (*node.args, *how))
            else:
                continue
        node.replace_all_uses_with(own)
        graph.erase_node(node)
    program.recompile()
