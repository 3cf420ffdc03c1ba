"""Decoding against Pillow and torchvision's transforms, and every bad file's outcome."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import badfiles
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from zfscale import collection as sources
from zfscale.collection.decode import MIN_SIDE, Decoded, Quarantine, decode, decode_ahead
from zfscale.records import ImageRef, Preprocessing, Reason, Sample, image_id

CASES = {case.name: case for case in badfiles.cases()}


def reference(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """As a torchvision data loader: Pillow, Resize, CenterCrop; transparency on the mean."""
    image = Image.open(io.BytesIO(data))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        mean = tuple(int(value) for value in preprocessing.mean)
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*mean, 255)), image)
    size = preprocessing.crop if preprocessing.resize is None else preprocessing.resize
    pipeline = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(preprocessing.crop)])
    return np.asarray(pipeline(image.convert("RGB"))).transpose(2, 0, 1)


@pytest.mark.parametrize("name", CASES)
def test_outcome(name: str, preprocessing: Preprocessing) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if case.outcome is None:
            decoded = decode(case.data, preprocessing)
            assert decoded.pixels.shape == (3, 56, 56)
        else:
            with pytest.raises(Quarantine) as caught:
                decode(case.data, preprocessing)
            assert caught.value.reason is case.outcome
            assert caught.value.detail


GOOD = [case.name for case in CASES.values() if case.outcome is None]


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_of_pillow(name: str, preprocessing: Preprocessing) -> None:
    data = CASES[name].data
    if name == "broken_exif.jpg":  # Pillow warns.
        data = badfiles.encode(badfiles.picture(11))
    decoded = decode(CASES[name].data, preprocessing)
    with Image.open(io.BytesIO(data)) as image:
        assert (decoded.width, decoded.height) == image.size
    expected = reference(data, preprocessing).astype(int)
    difference = np.abs(decoded.pixels.numpy().astype(int) - expected)
    assert difference.mean() < 1
    assert np.abs(expected - 128).mean() > 5, "the picture itself must not be grey"


@pytest.mark.parametrize(
    ("resize", "crop"), [(64, (56, 56)), (None, (48, 32)), (40, (56, 60)), (256, (224, 224))]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(80, 64), (64, 80), (9, 30), (200, 201)])
def test_resize_and_crop_as_torchvision(
    resize: int | None, crop: tuple[int, int], interpolation: str, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(resize, crop, (0, 0, 0), interpolation=interpolation)
    data = badfiles.encode(badfiles.picture(3, size), "PNG")
    pixels = torch.from_numpy(np.array(badfiles.picture(3, size))).permute(2, 0, 1).contiguous()
    mode = v2.InterpolationMode(interpolation)
    pipeline = v2.Compose([v2.Resize(resize or crop, mode, antialias=True), v2.CenterCrop(crop)])
    decoded = decode(data, preprocessing)
    assert decoded.pixels.dtype is torch.uint8
    assert decoded.pixels.permute(1, 2, 0).is_contiguous()
    assert torch.equal(decoded.pixels, pipeline(pixels))


def test_transparent_pixels_are_zero_after_preprocessing() -> None:
    data = badfiles.encode(badfiles.transparent(badfiles.picture(1)), "PNG")
    mean = (0.5, 0.25, 0.75)
    preprocessing = Preprocessing(None, (64, 80), mean, scale=1 / 255)
    colour = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)
    assert torch.equal(decode(data, preprocessing).pixels[:, 10, 10], colour)
    swapped = decode(data, replace(preprocessing, order="BGR")).pixels[:, 10, 10]
    assert torch.equal(swapped, colour.flip(0))


def test_orientation_in_exif_is_ignored(preprocessing: Preprocessing) -> None:
    turned = badfiles.with_orientation(badfiles.picture(1), 6)
    plain = badfiles.encode(badfiles.picture(1))
    assert torch.equal(decode(turned, preprocessing).pixels, decode(plain, preprocessing).pixels)


def test_smallest_side(preprocessing: Preprocessing) -> None:
    data = badfiles.encode(badfiles.picture(1, (MIN_SIDE, MIN_SIDE)), "PNG")
    assert decode(data, preprocessing).width == MIN_SIDE
    data = badfiles.encode(badfiles.picture(1, (MIN_SIDE, MIN_SIDE - 1)), "PNG")
    with pytest.raises(Quarantine, match="too_small"):
        decode(data, preprocessing)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_cut_anywhere_is_never_used(mode: str, preprocessing: Preprocessing) -> None:
    """Cut plainly, filled up with zeros, or closed with an end marker: no grey garbage passes.

    What the last block lacks is not noticed behind an end marker: the cuts stop short of it.
    """
    data = badfiles.encode(badfiles.picture(5).convert(mode), quality=95)
    start = badfiles.scan_start(data)
    stuffed = [place + 1 for place in range(start, len(data) - 500) if data[place] == 0xFF]
    assert stuffed, "a cut between 0xFF and its zero must be among them"
    for cut in [*np.linspace(start, len(data) - 500, 40).astype(int), *stuffed]:
        for end in (b"", bytes(len(data) - cut), badfiles.EOI):
            with pytest.raises(Quarantine) as caught:
                decode(data[:cut] + end, preprocessing)
            assert caught.value.reason in (Reason.TRUNCATED, Reason.CORRUPT)


def test_damage_never_ends_the_process() -> None:
    """In a process of its own, for a fault in a C library would end this one."""
    script = """
import badfiles, numpy as np
from zfscale.records import Preprocessing
from zfscale.collection.decode import Quarantine, decode
rng = np.random.default_rng(0)
preprocessing = Preprocessing(32, (32, 32), (0, 0, 0))
for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
    good = badfiles.encode(badfiles.picture(1), kind)
    outcomes = []
    for attempt in range(300):
        data = bytearray(good)
        for place in rng.integers(2, len(data), 1 + attempt % 20):
            data[place] = rng.integers(256)
        try:
            decode(bytes(data[: rng.integers(10, 2 * len(data))]), preprocessing)
            outcomes.append("ok")
        except Quarantine as quarantine:
            outcomes.append(str(quarantine.reason))
    print(kind, len(outcomes), outcomes.count("truncated") > 0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        f"{kind} 300 True" for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")
    ]


def samples(count: int) -> Iterator[Sample]:
    """A good image, a bad one, one that its container refused, and so on."""
    kinds = [badfiles.encode(badfiles.picture(1)), b"<html>", None]
    for index in range(count):
        reason = Reason.NO_IMAGE if index % 3 == 2 else None
        yield Sample(index, f"k{index}", None, ImageRef("x"), kinds[index % 3], reason)


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (3, 2), (4, 16)])
def test_decode_ahead_keeps_order_and_reasons(
    threads: int, ahead: int, preprocessing: Preprocessing
) -> None:
    alone = decode(badfiles.encode(badfiles.picture(1)), preprocessing)
    found = list(decode_ahead(samples(50), preprocessing, threads, ahead))
    assert [sample.index for sample, _ in found] == list(range(50))
    for sample, outcome in found:
        match sample.index % 3:
            case 0:
                assert isinstance(outcome, Decoded)
                assert torch.equal(outcome.pixels, alone.pixels)
                assert sample.data is not None
                assert outcome.id == image_id(sample.data)
            case 1:
                assert isinstance(outcome, Quarantine)
                assert outcome.reason is Reason.NOT_AN_IMAGE
            case _:
                assert isinstance(outcome, Quarantine)
                assert outcome.reason is Reason.NO_IMAGE


def test_decode_ahead_is_bounded_and_ends_its_threads(preprocessing: Preprocessing) -> None:
    drawn = []

    def counted() -> Iterator[Sample]:
        for sample in samples(1000):
            drawn.append(sample.index)
            yield sample

    stream = decode_ahead(counted(), preprocessing, threads=2, ahead=5)
    for _ in range(3):
        next(stream)
    assert len(drawn) == 3 + 5 - 1
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("decode") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads outlive the iterator"


def test_decode_ahead_passes_on_errors_of_the_source(preprocessing: Preprocessing) -> None:
    def broken() -> Iterator[Sample]:
        yield from samples(3)
        raise TimeoutError("the storage is away")

    with pytest.raises(TimeoutError):
        list(decode_ahead(broken(), preprocessing, threads=2, ahead=2))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_decoding_starts_no_threads_of_torch() -> None:
    """A team of OpenMP threads for each thread that decodes slows down those that compute."""
    script = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import torch
from zfscale.records import Preprocessing
from zfscale.collection.decode import decode
torch.set_num_threads(2)
data = open(sys.argv[1], "rb").read()
with ThreadPoolExecutor(1) as pool:
    pool.submit(int).result()
    before = len(os.listdir("/proc/self/task"))
    pixels = pool.submit(decode, data, Preprocessing(256, (224, 224), (0, 0, 0))).result().pixels
    print(len(os.listdir("/proc/self/task")) - before)
    pool.submit(pixels.contiguous).result()
    print(len(os.listdir("/proc/self/task")) - before)
"""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(badfiles.encode(badfiles.picture(1, (500, 375))))
        file.flush()
        found = subprocess.run(
            [sys.executable, "-c", script, file.name], check=True, capture_output=True, text=True
        )
    # A copy by torch would start one, or this test sees nothing.
    assert found.stdout.split() == ["0", "1"]


def test_photographs_decode_as_with_pillow(shared_data: Path) -> None:
    """800 ImageNet photographs: all are used, and hardly a grey level is off."""
    preprocessing = Preprocessing(256, (224, 224), (123.7, 116.3, 103.5))
    shards = sources.find([str(shared_data / "imagenet-sample" / "val-*.tar")])
    compared = used = 0
    for shard in shards:
        stream = sources.read(shard, sources.index(shard))
        for sample, outcome in decode_ahead(stream, preprocessing, threads=2, ahead=16):
            assert isinstance(outcome, Decoded), (sample.key, outcome)
            used += 1
            if sample.index % 20 == 0 and sample.data is not None:
                expected = reference(sample.data, preprocessing).astype(int)
                assert np.abs(outcome.pixels.numpy().astype(int) - expected).mean() < 0.5
                compared += 1
    assert used == 800
    assert compared == 40
