"""Scanning images that are decoded already, in memory: what scan and peers measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from zfscale.analyses.scan.analysis import Options, Scan
from zfscale.analysis import Batch
from zfscale.convnet.network import Network
from zfscale.records import Columns, Image, ImageRef, Reason, Task, image_id

Between = Callable[[Batch], None]


class Decoded:
    """A `Context` of decoded images, as far as a scan needs it; `between` precedes each batch."""

    def __init__(self, network: Network, batches: Sequence[Batch], between: Between) -> None:
        self.network = network
        self._batches = batches
        self._between = between

    def batches(self) -> Iterator[Batch]:
        for batch in self._batches:
            self._between(batch)
            yield batch

    def quarantine(self, image: Image, reason: Reason) -> None:
        raise AssertionError(f"{image} gave {reason}")


def batches(pixels: torch.Tensor, size: int) -> list[Batch]:
    """Batches of exactly `size` as a worker gives them, of images labelled 0 to 9."""
    images = [
        Image(i, image_id(str(i).encode()), f"{i:06}", i % 10, ImageRef("memory"), 500, 375)
        for i in range(len(pixels))
    ]
    found = []
    for start in range(0, len(pixels), size):
        chosen = pixels[start : start + size]
        shape = (size, *pixels.shape[1:])
        batch = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last).zero_()
        batch[: len(chosen)] = chosen
        found.append(Batch(batch, tuple(images[start : start + size])))
    return found


def scan_all(
    network: Network, given: Sequence[Batch], k: int, between: Between = lambda batch: None
) -> Columns:
    """The winners of one task of these batches, as a worker finds them."""
    scan = Scan(Options(top_k=k))
    return scan.run(Decoded(network, given, between), Task("scan")).tables["winners"]


@torch.inference_mode()
def forward(network: Network, inputs: torch.Tensor) -> torch.Tensor:
    """The bare forward pass over normalised inputs."""
    output: torch.Tensor = network.module(inputs)
    return output
