"""The pictures of a site: montages of patches and projections, large projections, whole images.

Every image is read once, whatever number of features it wins and whatever else shows it: its
patches go to a spool on the disk, as places of montages that are encoded when all images have
been read.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfscale.gallery import pictures
from zfscale.gallery.output import File
from zfscale.gallery.site import Feature, LayerView, Site
from zfscale.gallery.threads import in_order
from zfscale.records import Box
from zfscale.runs.results import crop_patch

Place = tuple[int, int, int, Box | None]
"""Where a patch belongs: index of the layer, index of the feature, rank; and its box."""


def images_and_patches(site: Site, others: Collection[str]) -> Iterator[File]:
    """Whole images as the network saw them, then the montages of patches.

    The images are the winners and `others`, which are ids.
    """
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for at, layer in enumerate(site.layers):
        for index, feature in enumerate(layer.features):
            for winner in feature.winners:
                places[winner.image].append((at, index, winner.rank, winner.box))
    wanted = places.keys() | set(others)
    in_file_order = (
        [image for image in site.results.references if image in wanted] if wanted else []
    )
    missing = wanted - set(in_file_order)
    order = [*in_file_order, *sorted(missing)]  # the missing ones raise when they are read
    with tempfile.TemporaryDirectory(prefix="zfscale-gallery-") as folder:
        spools = [_spool(Path(folder) / f"{at}.npy", x) for at, x in enumerate(site.layers)]

        def read(image: str) -> File:
            pixels = site.results.image(image)
            for at, index, rank, box in places.get(image, ()):
                layer = site.layers[at]
                if rank < layer.shown:
                    patch = crop_patch(pixels, box, site.results.preprocessing.mean_colour)
                    spools[at][index, rank] = pictures.fit(patch, layer.tile)
            return _file(site.image(image), pixels)

        yield from in_order(read, order)
        for layer, spool in zip(site.layers, spools, strict=True):

            def sheet(
                index: int, layer: LayerView = layer, spool: NDArray[np.uint8] = spool
            ) -> File:
                feature = layer.features[index]
                tiles = spool[index, : len(feature.winners)]
                path = layer.picture(feature, "patches")
                return _file(path, pictures.montage(tiles, layer.shown))

            yield from in_order(sheet, range(len(layer.features)))


def projections(layer: LayerView, array: Any) -> Iterator[File]:
    """Two pictures for each feature of a layer: a montage, and all projections in full size.

    `array` is (features, k, h, w, 3) float32, read one feature at a time.
    """

    def sheets(feature: Feature) -> tuple[File, File]:
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


def count(site: Site, others: Collection[str]) -> int:
    """How many pictures there will be."""
    images = {w.image for x in site.layers for f in x.features for w in f.winners}
    return len(images.union(others)) + sum(
        len(x.features) * (3 if x.projected else 1) for x in site.layers
    )


def _spool(path: Path, layer: LayerView) -> NDArray[np.uint8]:
    shape = (max(1, len(layer.features)), layer.shown, *layer.tile, 3)
    return np.lib.format.open_memmap(path, "w+", np.uint8, shape)


def _file(path: str, pixels: NDArray[np.uint8]) -> File:
    return File(path, pictures.encode(pixels, path.rpartition(".")[2]))
