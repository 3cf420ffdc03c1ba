"""The images that benchmarks run on: photographs where there are any, else rendered ones.

The photographs are ILSVRC validation images in `imagenet-sample/val-*.tar`, under
`$ZFSCALE_DATA` or `../shared/data` beside the repository.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageOps

from zfscale import collection as sources
from zfscale.collection.decode import decode
from zfscale.datasets import parts
from zfscale.records import Preprocessing

SIZE = (500, 375)
"""Of a rendered image: as most photographs of ImageNet have it."""
SHARD = 100
"""Images in one tar."""


def photographs() -> Iterator[bytes]:
    """Encoded photographs; none where their folder is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ZFSCALE_DATA", folder)) / "imagenet-sample"
    if any(folder.glob("val-*.tar")):
        for shard in sources.find([str(folder / "val-*.tar")]):
            for sample in sources.read(shard, sources.index(shard)):
                assert sample.data is not None, sample
                yield sample.data


def encoded(count: int) -> list[bytes]:
    """`count` different JPEG files: photographs, then the same mirrored, or all rendered."""
    files = list(islice(photographs(), count))
    if files:
        return files + [_mirrored(data) for data in files[: count - len(files)]]
    return [_jpeg(parts.render(0, index).image.resize(SIZE)) for index in range(count)]


def kind() -> str:
    """What the images are, for the notes of a report."""
    if next(photographs(), None) is None:
        return f"rendered images of {SIZE[0]} x {SIZE[1]} pixels"
    return "ImageNet photographs (beyond 800 of them: their mirror images)"


def decoded(count: int, preprocessing: Preprocessing) -> torch.Tensor:
    """Pixels that a network takes, uint8 (count, 3, H, W), channels last."""
    pixels = torch.stack([decode(data, preprocessing).pixels for data in encoded(count)])
    return pixels.contiguous(memory_format=torch.channels_last)


def write(folder: Path, files: Sequence[bytes], shard: int = SHARD) -> str:
    """Put JPEG files into tars of `shard` images in `folder`, with labels; the glob for them."""
    for start in range(0, len(files), shard):
        with tarfile.open(folder / f"images-{start // shard:05}.tar", "w") as tar:
            for index, data in enumerate(files[start : start + shard], start):
                _add(tar, f"{index:06}.jpg", data)
                _add(tar, f"{index:06}.cls", str(index % 10).encode())
    return str(folder / "images-*.tar")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _mirrored(data: bytes) -> bytes:
    return _jpeg(ImageOps.mirror(Image.open(io.BytesIO(data)).convert("RGB")))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
