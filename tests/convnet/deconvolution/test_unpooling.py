"""Unpooling by hand, against the backward pass of max pooling, and on collisions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from zfscale.convnet.capture.operations import Sliding
from zfscale.convnet.deconvolution import switches

OVERLAPPING = Sliding((3, 3), (2, 2))


def test_a_value_goes_where_its_switch_says():
    values = torch.tensor([[[[5.0, 7.0]]]])
    where = torch.tensor([[[[0, 8]]]], dtype=torch.uint8)
    maps = switches.accumulate(values, where, OVERLAPPING)
    expected = torch.zeros(1, 1, 3, 5)
    expected[0, 0, 0, 0] = 5
    expected[0, 0, 2, 4] = 7
    assert torch.equal(maps, expected)
    assert torch.equal(switches.place(values, where, OVERLAPPING), expected)


def test_collisions_add_or_the_later_window_stays():
    # Both windows found their maximum in column 2, which they share.
    values = torch.tensor([[[[5.0, 7.0]]]])
    where = torch.tensor([[[[2, 0]]]], dtype=torch.uint8)
    assert switches.accumulate(values, where, OVERLAPPING)[0, 0, 0, 2] == 12
    assert switches.place(values, where, OVERLAPPING)[0, 0, 0, 2] == 7


def test_four_windows_meet_at_one_position():
    values = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    where = torch.tensor([[[[8, 6], [2, 0]]]], dtype=torch.uint8)
    assert switches.accumulate(values, where, OVERLAPPING)[0, 0, 2, 2] == 15
    assert switches.place(values, where, OVERLAPPING)[0, 0, 2, 2] == 8
    values[0, 0, 1, 1] = 0  # no signal, nothing to place
    assert switches.place(values, where, OVERLAPPING)[0, 0, 2, 2] == 4


@pytest.mark.parametrize("unpool", [switches.accumulate, switches.place])
def test_nothing_comes_from_outside_the_map(unpool):
    values = torch.ones(2, 3, 4, 4)
    where = torch.full((2, 3, 4, 4), switches.ABSENT, dtype=torch.uint8)
    assert not unpool(values, where, OVERLAPPING).any()


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padded=st.booleans(),
    ceil_mode=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_accumulate_is_the_backward_pass_of_max_pooling(
    kernel, stride, dilation, padded, ceil_mode, seed
):
    torch.manual_seed(seed)
    padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
    # Few values, so that many are equal and the first must win.
    maps = torch.randint(0, 4, (2, 3, 11, 12)).float().requires_grad_()
    how = (kernel, stride, padding, dilation, ceil_mode)
    pooled = functional.max_pool2d(maps, *how)
    signal = torch.randn(pooled.shape)
    (true,) = torch.autograd.grad(pooled, maps, signal)
    where = switches.find(maps.detach(), *how)
    spread = switches.accumulate(signal, where, Sliding(*how[:4]))
    room = torch.zeros(2, 3, 60, 60)
    room[:, :, : spread.shape[2], : spread.shape[3]] = spread
    found = room[:, :, padding[0] : padding[0] + 11, padding[1] : padding[1] + 12]
    assert torch.allclose(found, true, atol=1e-6)
    assert torch.allclose(room.sum(), found.sum(), atol=1e-4)
