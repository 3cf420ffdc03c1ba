"""Transforms of images against their definitions, one pixel at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zfscale.convnet.transforms import TRANSFORMS

SIZES = [(7, 7), (8, 8), (6, 9), (9, 4)]


@pytest.fixture(autouse=True)
def _as_in_a_worker() -> Iterator[None]:
    """Deterministic algorithms alone, as `runtime.prepare` has it."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def noise(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(count, 3, height, width, generator=generator)


def source(name: str, amount: float, y: float, x: float, size: tuple[int, int]) -> tuple:
    """Where the content at (y, x) of the transformed image was before."""
    cy, cx = (size[0] - 1) / 2, (size[1] - 1) / 2
    match name:
        case "vertical":
            return y - amount, x
        case "horizontal":
            return y, x - amount
        case "scale":
            return cy + (y - cy) / amount, cx + (x - cx) / amount
        case "rotation":  # in polar coordinates, the angle anticlockwise from the right
            radius, angle = math.hypot(y - cy, x - cx), math.atan2(cy - y, x - cx)
            before = angle - math.radians(amount)
            return cy - radius * math.sin(before), cx + radius * math.cos(before)
    raise AssertionError(name)


def pixel_by_pixel(image: torch.Tensor, name: str, amount: float) -> torch.Tensor:
    """The four pixels around the source, weighted by nearness; those outside are zero."""
    height, width = image.shape[2:]
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = source(name, amount, y, x, (height, width))
            top, left = math.floor(from_y), math.floor(from_x)
            for ny in (top, top + 1):
                for nx in (left, left + 1):
                    if 0 <= ny < height and 0 <= nx < width:
                        weight = (1 - abs(from_y - ny)) * (1 - abs(from_x - nx))
                        result[:, :, y, x] += weight * image[:, :, ny, nx]
    return result


AMOUNTS = [
    *(("vertical", amount) for amount in (1.0, -2.0, 0.5, -1.25, 3.75, 40.0, -40.5)),
    *(("horizontal", amount) for amount in (1.0, -3.0, 2.5, -0.125, 40.0)),
    *(("scale", amount) for amount in (1.1, 1.8, 3.0, 0.6)),
    *(("rotation", amount) for amount in (10.0, 45.0, 133.0, 270.0, -20.0, 350.0)),
]


@pytest.mark.parametrize(("name", "amount"), AMOUNTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_comes_from_where_it_should(name: str, amount: float, size) -> None:
    image = noise(*size)
    found = TRANSFORMS[name].apply(image, amount)
    torch.testing.assert_close(found, pixel_by_pixel(image, name, amount), rtol=0, atol=1e-5)


@given(
    name=st.sampled_from(sorted(TRANSFORMS)),
    amount=st.floats(0.25, 400, width=32),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
)
def test_any_amount(name: str, amount: float, size: tuple[int, int]) -> None:
    image = noise(*size, count=1)
    found = TRANSFORMS[name].apply(image, amount)
    torch.testing.assert_close(found, pixel_by_pixel(image, name, amount), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_change_is_the_image_itself(name: str) -> None:
    image = noise(8, 6)
    transform = TRANSFORMS[name]
    amounts = [transform.neutral, *((360.0, -360.0, 720.0) if name == "rotation" else ())]
    for amount in amounts:
        assert torch.equal(transform.apply(image, amount), image)
        assert torch.equal(transform.apply(image, float(amount)), image)


def test_whole_pixels_are_moved_and_not_computed() -> None:
    image = noise(9, 6)
    down = TRANSFORMS["vertical"].apply(image, 2.0)
    assert torch.equal(down[:, :, 2:], image[:, :, :-2])
    assert not down[:, :, :2].any()
    left = TRANSFORMS["horizontal"].apply(image, -1.0)
    assert torch.equal(left[:, :, :, :-1], image[:, :, :, 1:])
    assert not left[:, :, :, -1:].any()


@pytest.mark.parametrize("side", [8, 9])
def test_quarter_turns_are_those_of_torch(side: int) -> None:
    image = noise(side, side)
    for quarters in range(-3, 6):
        found = TRANSFORMS["rotation"].apply(image, 90.0 * quarters)
        expected = torch.rot90(image, quarters, (2, 3))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_comes_in_is_the_mean_colour() -> None:
    image = torch.ones(1, 3, 8, 8)
    assert TRANSFORMS["vertical"].apply(image, 3.0)[0, 0, :, 0].tolist() == [0.0] * 3 + [1.0] * 5
    assert TRANSFORMS["rotation"].apply(image, 45.0)[0, :, 0, 0].tolist() == [0.0] * 3
    assert TRANSFORMS["scale"].apply(image, 0.5)[0, :, 1, 1].tolist() == [0.0] * 3
    assert TRANSFORMS["scale"].apply(image, 2.0).min() == 1


@pytest.mark.parametrize(("name", "amount"), AMOUNTS)
def test_memory_format_makes_no_difference(name: str, amount: float) -> None:
    image = noise(8, 9)
    last = image.contiguous(memory_format=torch.channels_last)
    apply = TRANSFORMS[name].apply
    assert torch.equal(apply(last, amount), apply(image, amount))
    assert torch.equal(last, image)  # the image is left as it is
