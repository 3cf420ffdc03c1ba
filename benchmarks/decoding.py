"""Decoding alone against Pillow.

From encoded bytes to the pixels that a network takes: short side 256, centre crop 224. Ours also
checks that the file is whole and computes its content hash.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import torch
from PIL import Image

from benchmarks import _images
from benchmarks._report import Report
from benchmarks._timing import by_turns, ratio, seconds
from zfscale.collection.decode import decode, decode_ahead
from zfscale.models.networks.zfnet import PREPROCESSING
from zfscale.records import ImageRef, Sample

SIDE, CROP = 256, 224


def pillow(data: bytes) -> Image.Image:
    """The same with Pillow alone."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SIDE / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    left, top = (width - CROP) // 2, (height - CROP) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + CROP, top + CROP))


def run(count: int = 200, rounds: int = 5) -> Report:
    files = _images.encoded(count)
    cores = os.cpu_count() or 1
    torch.set_num_threads(1)
    routines = {
        "Pillow, one thread": lambda: seconds(lambda: [pillow(data) for data in files]),
        "zfscale, one thread": lambda: seconds(lambda: [decode(d, PREPROCESSING) for d in files]),
        f"zfscale, {cores} threads": lambda: seconds(lambda: _ahead(files, cores)),
    }
    taken = by_turns(routines, rounds)
    base = taken["Pillow, one thread"]
    rows = [
        (name, f"{count / sorted(times)[rounds // 2]:.0f}", ratio(base, times))
        for name, times in taken.items()
    ]
    note = f"{count:,} {_images.kind()}, medians of {rounds} rounds."
    return Report(("decoder", "images/s", "times Pillow"), rows, note)


def _ahead(files: Sequence[bytes], threads: int) -> None:
    samples = (Sample(i, str(i), None, ImageRef("m"), data) for i, data in enumerate(files))
    for _ in decode_ahead(samples, PREPROCESSING, threads, 64):
        pass
