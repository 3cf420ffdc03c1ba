"""A network as a directed graph of primitive operations, found by torch.fx.

Knows how calls follow one another, where each came from and the shape of what it gives;
not what the operations mean for geometry or deconvolution.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from zfscale.convnet.capture import conversion
from zfscale.convnet.capture import operations as ops
from zfscale.errors import UnsupportedOperation

Shape = tuple[int, ...]


class UntraceableError(Exception):
    """torch.fx cannot turn the network into a graph; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation of the network.

    `shape` is that of the output without the batch: (C, H, W), (T, C) or (C,); it is empty for
    an opaque operation that gives several tensors. `module` is the path of the module it
    belongs to. `inputs` are names of nodes.
    """

    name: str
    operation: ops.Operation
    inputs: tuple[str, ...]
    shape: Shape
    module: str

    def unsupported(self, why: str) -> UnsupportedOperation:
        """An error that names this node, its module and operation, and the way out."""
        operation = self.operation
        named = getattr(operation, "name", type(operation).__name__)
        return UnsupportedOperation(
            f"node {self.name} (module {self.module or 'the network itself'}): {named}: {why}; "
            f"choose layers before it, or write the module with convolution, batch norm, ReLU, "
            f"pooling, local response normalisation, linear, flatten, add and cat"
        )


@dataclass(frozen=True, eq=False)
class Graph:
    """All operations in the order of execution.

    `modules` maps the path of every module that was called to the node of its (last) output;
    `output` is the node of what the network returns.
    `source` maps each node to the one of torch.fx, in `program`, that computes it. The weights
    of the operations lie on `device`.
    """

    nodes: Mapping[str, Node]
    consumers: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, str]
    output: str
    source: Mapping[str, fx.Node]
    program: fx.Graph
    device: torch.device

    @property
    def input(self) -> str:
        """The node of the normalised image."""
        return next(iter(self.nodes))

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The nodes that `name` depends on and itself, last first: the way down to the input."""
        wanted = {name}
        path = []
        for node in reversed(list(self.nodes.values())):
            if node.name in wanted:
                path.append(node.name)
                wanted.update(node.inputs)
        return tuple(path)

    def rectified(self, name: str) -> str:
        """Where the activations of the convolution `name` can be seen after its rectification.

        Follows batch norm, residual addition and dropout to a rectification (or another
        pointwise nonlinearity). Where there is none, the last batch norm, or the convolution.
        """
        linear = place = name
        while len(self.consumers[place]) == 1:
            place = self.consumers[place][0]
            operation = self.nodes[place].operation
            if isinstance(operation, ops.Rectification | ops.Pointwise):
                return place
            if isinstance(operation, ops.BatchNorm) and linear == name:
                linear = place
            if not isinstance(operation, ops.BatchNorm | ops.Add | ops.Identity):
                break
        return linear


def trace(module: nn.Module, input_shape: tuple[int, int, int]) -> Graph:
    """Trace `module` in evaluation mode for inputs of shape (B, *input_shape).

    Runs it once to find shapes, and compares the result with that of the module itself.
    Raises UntraceableError.
    """
    tracer = _Tracer()
    try:
        program = tracer.trace(module)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise UntraceableError(f"torch.fx: {type(error).__name__}: {reason}") from error
    parameter = next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, *input_shape, generator=generator).to(parameter)
    with torch.no_grad():
        recorder = _Recorder(module, program)
        output = recorder.run(pixels)
        if not _equal(output, module(pixels)):
            raise UntraceableError("torch.fx: the traced program computes something else")
    return recorder.recorded(tracer.outputs, pixels.device)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(
            one, other, rtol=1e-3, atol=1e-5, equal_nan=True
        )
    return type(one) is type(other)


class _Tracer(fx.Tracer):
    """Remembers what each module, of one operation or of many, returned."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.outputs[self.path_of_module(m)] = result.node
        return result


class _Recorder(fx.Interpreter):
    """Runs the program once and writes down a Node for every tensor that depends on the input."""

    def __init__(self, module: nn.Module, program: fx.Graph) -> None:
        super().__init__(module, graph=program)
        self.program = program
        self.nodes: dict[str, Node] = {}
        self.source: dict[str, fx.Node] = {}
        # What a value is called now: an operation in place gives it a new name.
        self.names: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Execute `n` and record it."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        inputs = tuple(self.names[node] for node in _arguments(n) if node in self.names)
        operation: ops.Operation | None = None
        if n.op == "placeholder":
            operation = ops.Input()
        elif n.op == "call_module":
            x = next(iter((*args, *kwargs.values())), None)
            operation = conversion.of_module(self.fetch_attr(str(n.target)), x)
        elif n.op in {"call_function", "call_method"} and inputs:
            operation = conversion.of_function(n.target, args, kwargs)
        if len(inputs) > 1 and not isinstance(operation, ops.Add | ops.Concatenation | ops.Opaque):
            operation = ops.Opaque(f"{n.target} of several inputs")
        result = super().run_node(n)
        if operation is not None and _holds_tensor(result):
            self._record(n, operation, inputs, result)
        return result

    def recorded(self, outputs: Mapping[str, fx.Node], device: torch.device) -> Graph:
        """All that was recorded."""
        consumers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for name in dict.fromkeys(node.inputs):
                consumers[name].append(node.name)
        own = {node: name for name, node in self.source.items()}
        returned: Any = next(node for node in self.program.nodes if node.op == "output").args[0]
        return Graph(
            nodes=self.nodes,
            consumers={name: tuple(users) for name, users in consumers.items()},
            modules={path: own[node] for path, node in outputs.items() if node in own},
            output=self.names.get(returned, ""),
            source=self.source,
            program=self.program,
            device=device,
        )

    def _record(
        self, n: fx.Node, operation: ops.Operation, inputs: tuple[str, ...], result: Any
    ) -> None:
        stack = n.meta.get("nn_module_stack") or {"": ("", None)}
        module = str(n.target) if n.op == "call_module" else next(reversed(stack.values()))[0]
        name = module if n.op == "call_module" and module not in self.nodes else n.name
        shape = tuple(result.shape[1:]) if isinstance(result, torch.Tensor) else ()
        self.nodes[name] = Node(name, operation, inputs, shape, module)
        self.source[name] = n
        self.names[n] = name
        if _in_place(n, self.module):
            self.names[n.all_input_nodes[0]] = name


def _arguments(n: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, in order and as often as they are named."""
    nodes: list[fx.Node] = []

    def collect(node: fx.Node) -> fx.Node:
        nodes.append(node)
        return node

    fx.map_arg((n.args, n.kwargs), collect)
    return nodes


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _in_place(n: fx.Node, root: nn.Module) -> bool:
    if n.op == "call_module":
        return bool(getattr(root.get_submodule(str(n.target)), "inplace", False))
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    if n.target is operator.iadd or n.kwargs.get("inplace"):
        return True
    return name.endswith("_") and not name.endswith("__")
