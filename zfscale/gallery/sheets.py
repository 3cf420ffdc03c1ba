"""The pictures of a site: montages of patches and projections, large projections, whole images.

Every image is read once, whatever number of features it wins and whatever else shows it: its
patches go to a spool on the disk, as places of montages that are encoded when all images have
been read. The work is done in threads, with few pictures in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zfscale.gallery import pictures
from zfscale.gallery.pages import File
from zfscale.gallery.site import Feature, LayerView, ScanView, ShownImage, Site
from zfscale.runs.results import crop_patch

Item = TypeVar("Item")
Result = TypeVar("Result")


def images_and_patches(site: Site) -> Iterator[File]:
    """Whole images as the network saw them, then the montages of patches."""
    layers = [layer for scan in site.scans for layer in scan.layers]
    with tempfile.TemporaryDirectory(prefix="zfscale-gallery-") as folder:
        spools = {
            layer.address: _spool(Path(folder) / f"{number}.npy", layer)
            for number, layer in enumerate(layers)
        }

        def read(image: ShownImage) -> File:
            pixels = site.results.pixels(image.id, image.ref)
            for win in image.wins:
                if win.winner.rank < win.layer.shown:
                    colour = site.results.preprocessing.mean_colour
                    patch = crop_patch(pixels, win.winner.box, colour)
                    place = win.feature.number, win.winner.rank
                    spools[win.layer.address][place] = pictures.fit(patch, win.layer.tile)
            return _file(site.image(image.id), pixels)

        yield from in_order(read, site.images.values())
        for layer in layers:

            def sheet(feature: Feature, layer: LayerView = layer) -> File:
                tiles = spools[layer.address][feature.number, : len(feature.winners)]
                path = layer.picture(feature, "patches")
                return _file(path, pictures.montage(tiles, layer.shown))

            yield from in_order(sheet, layer.features)


def projections(scan: ScanView) -> Iterator[File]:
    """Two pictures for each feature that was deconvolved: a montage, and all projections in full
    size.
    """
    for layer in scan.layers:
        array = scan.projections(layer)  # (features, k, h, w, 3) float32, read by feature
        if array is None:
            continue

        def sheets(
            feature: Feature, layer: LayerView = layer, array: Any = array
        ) -> tuple[File, File]:
            count = len(feature.winners)
            values = np.asarray(array[feature.number], dtype=np.float32)[:count]
            grey = [pictures.to_grey(value) for value in values]
            large = np.stack(grey) if grey else np.empty((0, *layer.field, 3), np.uint8)
            tiles = [pictures.fit(tile, layer.tile) for tile in grey[: layer.shown]]
            small = np.stack(tiles) if tiles else np.empty((0, *layer.tile, 3), np.uint8)
            return (
                _file(layer.picture(feature, "projections"), pictures.montage(small, layer.shown)),
                _file(layer.picture(feature, "large"), pictures.montage(large, layer.kept)),
            )

        for pair in in_order(sheets, layer.features):
            yield from pair


def count(site: Site) -> int:
    """How many pictures there will be."""
    layers = [layer for scan in site.scans for layer in scan.layers]
    return len(site.images) + sum(
        len(layer.features) * (3 if layer.projected else 1) for layer in layers
    )


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map`, in threads: results in the order of the items, memory for a few items only.

    The first error ends it; what has not started then never starts.
    """
    threads = max(2, os.cpu_count() or 2)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _spool(path: Path, layer: LayerView) -> NDArray[np.uint8]:
    features = 1 + max((feature.number for feature in layer.features), default=0)
    shape = (features, layer.shown, *layer.tile, 3)
    return np.lib.format.open_memmap(path, "w+", np.uint8, shape)


def _file(path: str, pixels: NDArray[np.uint8]) -> File:
    return File(path, pictures.encode(pixels, path.rpartition(".")[2]))
