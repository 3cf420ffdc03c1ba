"""Faster operations against torch's own, and where programs use them."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from zfscale.convnet.capture import kernels


@pytest.mark.parametrize("shape", [(11,), (3, 11), (3, 5, 11)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_equals_that_of_torch(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 11), torch.randn(6) if biased else None
    inputs = torch.randn(shape)
    found = kernels.linear(inputs, weight, bias)
    torch.testing.assert_close(found, functional.linear(inputs, weight, bias))
    assert found.is_contiguous()


@pytest.mark.parametrize(
    "shape", [(4, 3, 5, 7), (8, 96, 13, 13), (32, 8, 3, 5), (2, 1, 4, 4), (3, 8, 6)]
)
@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_local_response_norm_equals_that_of_torch(
    shape: tuple[int, ...], size: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    inputs = torch.relu(torch.randn(shape) * 20)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=layout)
    found = kernels.local_response_norm(inputs, size, 5e-2, 0.75, 2.0)
    expected = functional.local_response_norm(inputs, size, 5e-2, 0.75, 2.0)
    # At the end of a tensor torch takes another routine for powers: its last bit may differ.
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)
    assert torch.equal(found, expected) or inputs.numel() % kernels.GROUPS
    assert found.stride() == inputs.stride()


def test_an_image_is_normalised_alike_at_every_place_in_a_batch() -> None:
    torch.manual_seed(0)
    inputs = torch.relu(torch.randn(5, 7, 9, 11) * 20)
    together = kernels.local_response_norm(inputs, 5)
    for place, image in enumerate(inputs):
        assert torch.equal(kernels.local_response_norm(image[None], 5)[0], together[place])


class Net(nn.Module):
    """Each operation as a module and as a function, and three modules that do more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(3, alpha=0.1, beta=0.5, k=1.5)
        self.fc = nn.Linear(48, 10)
        self.plain = nn.Linear(10, 10, bias=False)
        self.hooked = nn.Linear(10, 10)
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)
        self.patched = nn.Linear(10, 10)
        self.patched.forward = lambda x: x - 1
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(10, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.local_response_norm(self.norm(x), 5, alpha=0.2)
        x = functional.linear(input=self.fc(torch.flatten(x, 1)), weight=self.plain.weight)
        return self.scaled(self.patched(self.hooked(self.plain(x))))


def test_programs_use_them_and_give_the_same() -> None:
    torch.manual_seed(0)
    module = Net().eval()
    program = fx.symbolic_trace(module)
    kernels.replace(program)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(kernels.local_response_norm) == 2
    assert called.count(kernels.linear) == 3  # fc, the function, plain
    assert functional.linear not in called
    assert {"hooked", "patched"} <= {node.target for node in program.graph.nodes}
    inputs = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(program(inputs), module(inputs))
