"""From encoded bytes to the pixels that a network sees, or the reason why there are none.

JPEG and WebP are decoded and resized by torchvision: less time than Pillow takes, and without the
GIL. PNG, GIF and BMP go through Pillow: on a PNG with damaged data torchvision does not raise but
ends the process. docs/images.md says what becomes of odd input, and why.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.io  # noqa: F401  (registers torch.ops.image)
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, PngImagePlugin, WebPImagePlugin
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from zfscale.collection.header import END_OF_IMAGE, Header, Quarantine, inspect
from zfscale.records import Preprocessing, Reason, Sample, image_id

MAX_PIXELS = 89_478_485
"""Larger images are refused: this is a quarter of a gigabyte of RGB, where Pillow too begins to
warn of decompression bombs."""

MAX_ASPECT = 200
"""Images more times longer than wide are refused: they would grow when their short side does."""

MIN_SIDE = 8
"""Images with a shorter side, in pixels, are refused: they are tracking pixels and rulers."""

__all__ = [
    "MAX_ASPECT",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Decoded",
    "Quarantine",
    "decode",
    "decode_ahead",
]

# The two calls of torchvision.io that are needed, without its deprecation warning for each image.
_JPEG = torch.ops.image.decode_jpeg
_WEBP = torch.ops.image.decode_webp
_RGB = 3

_PILLOW: dict[str, type[ImageFile.ImageFile]] = {
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}

# Not one marker in it; the leading zero closes a 0xFF that a cut has left open.
_FILLER = bytes(range(128)) * 2


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image ready for a batch. `pixels` is uint8 (3, *crop), RGB, its memory in the order of
    H, W, 3 (channels last); `width` and `height` are those of the encoded image; `id` is its
    content hash.
    """

    id: str
    pixels: torch.Tensor
    width: int
    height: int


def decode(data: bytes, preprocessing: Preprocessing) -> Decoded:
    """Decode, resize and crop one image. Raises Quarantine, and nothing else, for bad input.

    The orientation in EXIF is ignored, as by the data loaders that networks are trained with.
    Transparent pixels take the mean colour of the preprocessing: the network sees zero there.
    """
    header = inspect(data)
    _check_size(header.width, header.height)
    if not header.complete:
        raise Quarantine(Reason.TRUNCATED, f"the {header.kind} file stops before its end mark")
    if header.kind == "jpeg":
        pixels = _jpeg(data, header)
    elif header.kind == "webp" and not header.alpha:
        pixels = _native(_WEBP, data)
    else:
        pixels = _pillow(data, header.kind, preprocessing)
    height, width = pixels.shape[-2:]
    return Decoded(image_id(data), _resize_and_crop(pixels, preprocessing), width, height)


def _check_size(width: int, height: int) -> None:
    short, long = min(width, height), max(width, height)
    if short < MIN_SIDE:
        reason, limit = Reason.TOO_SMALL, f"a side of {MIN_SIDE} is the least"
    elif width * height > MAX_PIXELS:
        reason, limit = Reason.TOO_LARGE, f"{MAX_PIXELS} pixels are the most"
    elif long > MAX_ASPECT * short:
        reason, limit = Reason.TOO_LARGE, f"a long side of {MAX_ASPECT} short ones is the most"
    else:
        return
    raise Quarantine(reason, f"{width} x {height} pixels; {limit}")


def _native(operation: Callable[..., Any], data: bytes) -> torch.Tensor:
    """Decode to uint8 (3, H, W), its memory in the order of H, W, 3."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels: torch.Tensor = operation(encoded, _RGB)
    except RuntimeError as error:
        message = str(error).rpartition(", ")[2]
        reason = Reason.TRUNCATED if "truncated" in message else Reason.CORRUPT
        raise Quarantine(reason, message) from error
    return pixels


def _jpeg(data: bytes, header: Header) -> torch.Tensor:
    """Decode a JPEG; one that stops early is refused though it has an end marker.

    libjpeg fills what is missing with grey 128 (CMYK: 64) and goes on. So where the last block
    is that grey, other bits are put before the end marker: a complete image does not read them.
    """
    pixels = _native(_JPEG, data)
    corner = pixels[:, -MIN_SIDE:, -MIN_SIDE:]
    if (corner == corner[0, 0, 0]).all() and int(corner[0, 0, 0]) in (128, 64):
        end = data.find(END_OF_IMAGE, header.scan)
        refilled = data[:end] + _FILLER + data[end:]
        try:
            same = torch.equal(pixels, _native(_JPEG, refilled))
        except Quarantine:
            same = False
        if not same:
            raise Quarantine(Reason.TRUNCATED, "the image data of the JPEG stop early")
    return pixels


def _pillow(data: bytes, kind: str, preprocessing: Preprocessing) -> torch.Tensor:
    """Decode with the one parser that the first bytes ask for, and put transparency on the mean."""
    try:
        with _PILLOW[kind](io.BytesIO(data)) as image:
            if getattr(image, "is_animated", False):
                raise Quarantine(Reason.ANIMATED, f"{kind} of several frames")
            _check_size(*image.size)
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                rgb = Image.new("RGB", image.size, preprocessing.mean_colour)
                rgb.paste(rgba, mask=rgba.getchannel("A"))
            else:
                rgb = image.convert("RGB")
    except Quarantine:
        raise
    except Exception as error:  # What a parser of hostile bytes raises is anybody's guess.
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.CORRUPT
        raise Quarantine(reason, f"{type(error).__name__}: {error}") from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _resize_and_crop(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """As torchvision's Resize(antialias) and CenterCrop: too small a result is framed in black."""
    size = list(preprocessing.crop) if preprocessing.resize is None else [preprocessing.resize]
    interpolation = InterpolationMode(preprocessing.interpolation)
    resized = transforms.resize(pixels, size, interpolation, antialias=True)
    cropped: torch.Tensor = transforms.center_crop(resized, list(preprocessing.crop))
    # Copied by numpy: torch would start threads for it, a team for each thread that decodes, and
    # with more teams than cores those that compute go to sleep whenever they wait (docs/log.md).
    copied = np.array(cropped.permute(1, 2, 0).numpy(), order="C")
    return torch.from_numpy(copied).permute(2, 0, 1)


def decode_ahead(
    samples: Iterator[Sample], preprocessing: Preprocessing, threads: int, ahead: int
) -> Iterator[tuple[Sample, Decoded | Quarantine]]:
    """Decode samples in `threads` threads, at most `ahead` of the consumer, in their order.

    Content hashes are computed there too. Threads end with the iterator, however it ends.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[tuple[Sample, Future[Decoded | Quarantine]]] = deque()
    try:
        for sample in samples:
            pending.append((sample, pool.submit(_outcome, sample, preprocessing)))
            if len(pending) >= ahead:
                first, outcome = pending.popleft()
                yield first, outcome.result()
        while pending:
            first, outcome = pending.popleft()
            yield first, outcome.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _outcome(sample: Sample, preprocessing: Preprocessing) -> Decoded | Quarantine:
    if sample.data is None:
        reason = sample.reason or Reason.UNREADABLE
        return Quarantine(reason, f"{sample.key}: no bytes to decode")
    try:
        return decode(sample.data, preprocessing)
    except Quarantine as quarantine:
        return quarantine
