"""From one call of torch (a module, a function or a method) to the primitive operation it is.

Knows the signatures of torch; each converter below has the signature of the function it reads,
so that positional and keyword arguments bind as they do in torch. Knows nothing of graphs.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zfscale.convnet.capture import operations as ops

Converter = Callable[..., ops.Operation]


def of_module(module: nn.Module, x: Any) -> ops.Operation:
    """The operation of a leaf module applied to `x` (B, ...)."""
    converter = _MODULES.get(type(module))
    if converter is None or not isinstance(x, Tensor):
        return ops.Opaque(type(module).__name__)
    return converter(module, x)


def of_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ops.Operation:
    """The operation of a function (or of a method, given by its name) with real arguments."""
    name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
    converter = _METHODS.get(function) if isinstance(function, str) else _FUNCTIONS.get(function)
    if converter is None:
        return ops.Opaque(_BOOLEAN_DISPATCH.get(function, name))
    try:
        inspect.signature(converter).bind(*args, **kwargs)
    except TypeError:  # Torch takes more arguments than are understood here, such as a dtype.
        return ops.Opaque(name)
    return converter(*args, **kwargs)


def _pair(value: Any) -> ops.Pair:
    y, x = (value, value) if isinstance(value, int) else value if len(value) > 1 else value * 2
    return int(y), int(x)


def _convolution(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ops.Operation:
    del bias
    if input.ndim != 4:
        return ops.Opaque(f"convolution of {input.ndim - 2} dimensions")
    kernel, dilation = _pair(weight.shape[2:]), _pair(dilation)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    window = ops.Sliding(kernel, _pair(stride), _pair(padding), dilation)
    return ops.Convolution(weight.detach(), window, groups)


def _batch_norm(  # noqa: PLR0913, PLR0917 - the signature of torch's
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ops.Operation:
    del input, running_mean, bias, momentum
    if training or running_var is None:
        return ops.Opaque("batch normalisation by the statistics of the batch")
    scale = (running_var + eps).rsqrt()
    return ops.BatchNorm((scale if weight is None else scale * weight).detach())


def _max_pool(
    input: Tensor,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> ops.Operation:
    del input
    if return_indices:
        return ops.Opaque("max pooling that returns indices")
    kernel = _pair(kernel_size)
    step = _pair(stride) if stride else kernel
    return ops.MaxPool(ops.Sliding(kernel, step, _pair(padding), _pair(dilation)), ceil_mode)


def _average_pool(
    input: Tensor,  # noqa: A002
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> ops.Operation:
    if input.ndim != 4 or divisor_override is not None:
        return ops.Opaque("average pooling of another shape or with a divisor of its own")
    kernel = _pair(kernel_size)
    window = ops.Sliding(kernel, _pair(stride) if stride else kernel, _pair(padding))
    size = input.shape[2:]
    out = functional.avg_pool2d(input, kernel_size, stride, padding, ceil_mode).shape[2:]
    rows, columns = (
        ops.averages(size[axis], out[axis], window, axis, count_include_pad).to(input)
        for axis in (0, 1)
    )
    return ops.AveragePool(rows, columns, window)


def _adaptive_average_pool(input: Tensor, output_size: Any) -> ops.Operation:  # noqa: A002
    if input.ndim != 4:
        return ops.Opaque(f"adaptive average pooling of {input.ndim} dimensions")
    size = input.shape[2:]
    wanted = (output_size,) * 2 if output_size is None else output_size
    wanted = (wanted, wanted) if isinstance(wanted, int) else wanted
    out = [have if want is None else want for have, want in zip(size, wanted, strict=True)]
    if list(size) == out:
        return ops.Identity()
    rows, columns = (
        ops.adaptive_averages(have, want).to(input) for have, want in zip(size, out, strict=True)
    )
    return ops.AveragePool(rows, columns, None)


def _mean(
    input: Tensor,  # noqa: A002
    dim: Any = None,
    keepdim: bool = False,
) -> ops.Operation:
    """The mean over the whole map is the global average pool of many networks."""
    axes = () if dim is None else (dim,) if isinstance(dim, int) else dim
    if input.ndim != 4 or {axis % 4 for axis in axes} != {2, 3} or not keepdim:
        return ops.Opaque("mean")
    return _adaptive_average_pool(input, 1)


def _linear(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
) -> ops.Operation:
    del bias
    if input.ndim != 2:
        return ops.Opaque("linear layer over tokens")
    return ops.Linear(weight.detach())


def _dropout(
    input: Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> ops.Operation:
    del input, p, inplace
    return ops.Opaque("dropout in training mode") if training else ops.Identity()


def _add(
    input: Any,  # noqa: A002
    other: Any,
    *,
    alpha: float = 1,
) -> ops.Operation:
    tensors = isinstance(input, Tensor) and isinstance(other, Tensor)
    if not tensors or alpha != 1 or input.shape != other.shape:
        return ops.Opaque("add of unequal shapes, of a number or with a factor")
    return ops.Add()


def _concatenation(tensors: Any, dim: int = 0) -> ops.Operation:
    if dim % tensors[0].ndim != 1:
        return ops.Opaque(f"cat along dimension {dim}")
    return ops.Concatenation()


def _reshape(input: Tensor, *shape: Any) -> ops.Operation:  # noqa: A002
    if any(isinstance(part, torch.dtype) for part in shape):
        return ops.Opaque("view as another type")
    out = input.reshape(*shape)
    if out.shape == input.shape:
        return ops.Identity()
    return ops.Flatten() if out.shape == input.flatten(1).shape else ops.Opaque("reshape")


def _flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> ops.Operation:  # noqa: A002
    return _reshape(input, input.flatten(start_dim, end_dim).shape)


def _always(operation: ops.Operation) -> Converter:
    return lambda *_args, **_kwargs: operation


def _conv_module(m: Any, x: Tensor) -> ops.Operation:
    if m.padding_mode != "zeros":
        return ops.Opaque(f"convolution with padding mode {m.padding_mode}")
    return _convolution(x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


_rectify = _always(ops.Rectification())
_identity = _always(ops.Identity())
_normalise = _always(ops.Normalisation())

_MODULES: dict[type[nn.Module], Callable[[Any, Tensor], ops.Operation]] = {
    nn.Conv2d: _conv_module,
    nn.BatchNorm2d: lambda m, x: _batch_norm(
        x, m.running_mean, m.running_var, m.weight, m.bias, m.training, eps=m.eps
    ),
    nn.ReLU: _rectify,
    nn.MaxPool2d: lambda m, x: _max_pool(
        x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda m, x: _average_pool(
        x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda m, x: _adaptive_average_pool(x, m.output_size),
    nn.LocalResponseNorm: _normalise,
    nn.CrossMapLRN2d: _normalise,
    nn.Linear: lambda m, x: _linear(x, m.weight),
    nn.Flatten: lambda m, x: _flatten(x, m.start_dim, m.end_dim),
    nn.Identity: _identity,
    **{
        dropout: lambda m, x: _dropout(x, m.p, m.training)
        for dropout in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
    },
    **{
        module: _always(ops.Pointwise(module.__name__))
        for module in (
            *(nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
            *(nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus),
        )
    },
}

_FUNCTIONS: dict[Any, Converter] = {
    torch.conv2d: _convolution,
    functional.batch_norm: _batch_norm,
    torch.relu: _rectify,
    torch.relu_: _rectify,
    functional.relu: _rectify,
    functional.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    functional.avg_pool2d: _average_pool,
    functional.adaptive_avg_pool2d: _adaptive_average_pool,
    torch.mean: _mean,
    functional.local_response_norm: _normalise,
    functional.linear: _linear,
    functional.dropout: _dropout,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    torch.cat: _concatenation,
    torch.concat: _concatenation,
}

_METHODS: dict[str, Converter] = {
    "relu": _rectify,
    "relu_": _rectify,
    "mean": _mean,
    "flatten": _flatten,
    "reshape": _reshape,
    "view": _reshape,
    "add": _add,
    "add_": _add,
    "contiguous": _identity,
}

# These come out of torch.fx as an anonymous function.
_BOOLEAN_DISPATCH = {
    functional.adaptive_max_pool2d: "adaptive_max_pool2d",
    functional.fractional_max_pool2d: "fractional_max_pool2d",
}
