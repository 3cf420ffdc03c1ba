"""Images and tar members as the world sends them, each with its documented outcome.

`write_bad` writes single files, `write_tar` a WebDataset shard that mixes them among good images.
`Reason` says why an image is quarantined; None means that it is used.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zfscale.records import Reason

EOI = b"\xff\xd9"
SOF = b"\xff\xc0\x00\x11"
LOSSLESS = b"\xff\xc3\x00\x11"


@dataclass(frozen=True)
class BadCase:
    """A file by its name, and what becomes of it."""

    name: str
    data: bytes
    outcome: Reason | None


@dataclass(frozen=True)
class Expected:
    """A sample of `write_tar`, in the order of the tar."""

    key: str
    outcome: Reason | None
    label: int | None
    duplicate: bool = False
    """Whether an earlier sample has the same bytes: a scan counts it once."""


def picture(seed: int, size: tuple[int, int] = (80, 64)) -> Image.Image:
    """A picture with structure at all scales that no other seed has; `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    noisy = smooth.astype(np.int16) + rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """The signature and the header chunk."""
    fields = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", fields)


def png_bomb(side: int) -> bytes:
    """A valid 1-bit PNG of side x side black pixels: kilobytes that decode to gigabytes."""
    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    return png_header(side, side, 1, 0) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def jpeg_with_size(data: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header."""
    place = next(data.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def jpeg_with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """The JPEG with one more segment after its first two bytes."""
    segment = struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content
    return data[:2] + segment + data[2:]


def scan_start(data: bytes) -> int:
    """Where the compressed data of a baseline JPEG begin."""
    place = data.index(b"\xff\xda")
    return place + 2 + int(struct.unpack_from(">H", data, place + 2)[0])


def corrupt_middle(data: bytes) -> bytes:
    """The JPEG with 40 wrong bytes in its compressed data and no marker among them."""
    middle = (scan_start(data) + len(data)) // 2
    return data[:middle] + bytes(range(1, 41)) + data[middle + 40 :]


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    """A JPEG whose EXIF says that it is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


def transparent(image: Image.Image) -> Image.Image:
    """The image with its left half invisible."""
    mask = Image.new("L", image.size, 255)
    mask.paste(0, (0, 0, image.width // 2, image.height))
    image = image.convert("RGBA")
    image.putalpha(mask)
    return image


def animation(kind: str) -> bytes:
    """Three frames."""
    first, *others = (picture(seed) for seed in (901, 902, 903))
    return encode(first, kind, save_all=True, append_images=others, duration=100)


def deep_png() -> bytes:
    """16 bits a channel."""
    values = np.arange(64 * 80, dtype=np.uint16).reshape(64, 80) * 12
    return encode(Image.fromarray(values), "PNG")


def _cut() -> list[BadCase]:
    jpeg, png = encode(picture(1), quality=95), encode(picture(2), "PNG")
    start = scan_start(jpeg)
    half = (start + len(jpeg)) // 2
    progressive = encode(picture(3), progressive=True)
    webp, gif = encode(picture(4), "WEBP"), encode(picture(5), "GIF")
    cut = {
        "jpeg_cut_in_header.jpg": jpeg[:100],
        "jpeg_cut_at_data.jpg": jpeg[: start + 3],
        "jpeg_cut_in_half.jpg": jpeg[:half],
        "jpeg_cut_last_two_bytes.jpg": jpeg[:-2],
        "jpeg_cut_zero_filled.jpg": jpeg[:half] + bytes(len(jpeg) - half),
        "jpeg_cut_with_end_marker.jpg": jpeg[:half] + EOI,
        "jpeg_cut_progressive.jpg": progressive[: len(progressive) // 2],
        "png_cut_in_half.png": png[: len(png) // 2],
        "png_cut_last_chunk.png": png[:-12],
        "png_cut_in_header.png": png[:20],
        "webp_cut_in_half.webp": webp[: len(webp) // 2],
        "gif_cut_in_half.gif": gif[: len(gif) // 2],
        "bmp_cut_in_half.bmp": encode(picture(6), "BMP")[:8000],
    }
    return [BadCase(name, data, Reason.TRUNCATED) for name, data in cut.items()]


def _not_images() -> list[BadCase]:
    jpeg, png = encode(picture(7)), encode(picture(8), "PNG")
    noise = np.random.default_rng(0).bytes(5000)
    middle = len(png) // 2
    damaged_png = png[:middle] + bytes(byte ^ 0xFF for byte in png[middle:-12]) + png[-12:]
    no = Reason.NOT_AN_IMAGE
    return [
        BadCase("empty.jpg", b"", Reason.EMPTY),
        BadCase("html.jpg", b"<!DOCTYPE html><html><body>404</body></html>", no),
        BadCase("text.jpg", b"no image here\n" * 100, no),
        BadCase("random.jpg", b"\x00" + noise, no),
        BadCase("zeros.jpg", bytes(5000), no),
        BadCase("document.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + noise, no),
        BadCase("jpeg_marker_only.jpg", b"\xff\xd8\xff", Reason.TRUNCATED),
        BadCase("jpeg_no_data.jpg", b"\xff\xd8" + EOI + bytes(20), Reason.CORRUPT),
        BadCase("jpeg_bad_tables.jpg", jpeg[:30] + bytes(100) + jpeg[130:], Reason.CORRUPT),
        BadCase("png_damaged.png", damaged_png, Reason.CORRUPT),
        BadCase("png_no_header.png", png[:8] + png_chunk(b"IEND", b"") + png[8:], Reason.CORRUPT),
    ]


def _refused() -> list[BadCase]:
    jpeg = encode(picture(9))
    vector = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'
    huge_png = png_header(60_000, 60_000) + png_chunk(b"IDAT", zlib.compress(bytes(100)))
    large, small = Reason.TOO_LARGE, Reason.TOO_SMALL
    return [
        BadCase("bomb.png", png_bomb(15_000), large),
        BadCase("huge_header.jpg", jpeg_with_size(jpeg, 60_000, 60_000), large),
        BadCase("huge_header.png", huge_png + png_chunk(b"IEND", b""), large),
        BadCase("long_strip.png", encode(Image.new("L", (40_000, 8)), "PNG"), large),
        BadCase("one_pixel.png", encode(Image.new("RGB", (1, 1)), "PNG"), small),
        BadCase("line.png", encode(Image.new("RGB", (1, 5000)), "PNG"), small),
        BadCase("no_width.png", png_header(0, 64) + png_chunk(b"IEND", b""), small),
        BadCase("no_height.jpg", jpeg_with_size(jpeg, 80, 0), small),
        BadCase("deep.png", deep_png(), Reason.UNSUPPORTED_DEPTH),
        BadCase("deep.jpg", jpeg.replace(SOF + b"\x08", SOF + b"\x0c"), Reason.UNSUPPORTED_DEPTH),
        BadCase("lossless.jpg", jpeg.replace(SOF, LOSSLESS), Reason.UNSUPPORTED_FORMAT),
        BadCase("animated.gif", animation("GIF"), Reason.ANIMATED),
        BadCase("animated.webp", animation("WEBP"), Reason.ANIMATED),
        BadCase("animated.png", animation("PNG"), Reason.ANIMATED),
        BadCase("scan.tif", encode(picture(10), "TIFF"), Reason.UNSUPPORTED_FORMAT),
        BadCase("vector.svg", vector, Reason.UNSUPPORTED_FORMAT),
        BadCase("photo.jp2", b"\x00\x00\x00\x0cjP  \r\n\x87\n", Reason.UNSUPPORTED_FORMAT),
    ]


def _odd_but_good() -> list[BadCase]:
    jpeg, progressive = encode(picture(11)), encode(picture(12), progressive=True)
    palette = picture(13).quantize(32)
    bad_exif = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken"
    good = {
        "palette.png": encode(palette, "PNG"),
        "palette_transparent.png": encode(palette, "PNG", transparency=0),
        "rgba.png": encode(transparent(picture(14)), "PNG"),
        "grey.png": encode(picture(15).convert("L"), "PNG"),
        "grey_alpha.png": encode(transparent(picture(16)).convert("LA"), "PNG"),
        "one_bit.png": encode(picture(17).convert("1"), "PNG"),
        "cmyk.jpg": encode(picture(18).convert("CMYK")),
        "ycck.jpg": ycck(picture(19)),
        "grey.jpg": encode(picture(20).convert("L")),
        "progressive.jpg": progressive,
        "broken_exif.jpg": jpeg_with_segment(jpeg, 0xE1, bad_exif),
        "turned.jpg": with_orientation(picture(21), 6),
        "png_named.JPEG": encode(picture(22), "PNG"),
        "jpeg_named.png": encode(picture(23)),
        "still.gif": encode(picture(24), "GIF"),
        "still.webp": encode(picture(25), "WEBP"),
        "lossless.webp": encode(picture(26), "WEBP", lossless=True),
        "transparent.webp": encode(transparent(picture(27)), "WEBP"),
        "bitmap.bmp": encode(picture(28), "BMP"),
        "trailing_garbage.jpg": encode(picture(29)) + b"garbage" * 100,
        "trailing_garbage.png": encode(picture(33), "PNG") + b"garbage" * 100,
        "trailing_garbage.webp": encode(picture(34), "WEBP") + b"garbage" * 100,
        "corrupt_middle.jpg": corrupt_middle(encode(picture(30))),
        "grey_corner.jpg": encode(grey_corner()),
        "thin.png": encode(picture(31, (8, 500)), "PNG"),
    }
    return [BadCase(name, data, None) for name, data in good.items()]


def grey_corner() -> Image.Image:
    """A complete image that ends in the very grey of a truncated one."""
    image = picture(32)
    image.paste((128, 128, 128), (40, 32, 80, 64))
    return image


def ycck(image: Image.Image) -> bytes:
    """A CMYK JPEG that declares YCCK by its Adobe segment (transform 2)."""
    data = encode(image.convert("CMYK"))
    place = data.index(b"Adobe")
    return data[: place + 11] + b"\x02" + data[place + 12 :]


def cases() -> list[BadCase]:
    """All single files."""
    return [*_cut(), *_not_images(), *_refused(), *_odd_but_good()]


def write_bad(directory: Path) -> list[BadCase]:
    """Write every case as a file of its own."""
    written = cases()
    for case in written:
        (directory / case.name).write_bytes(case.data)
    return written


class TarWriter:
    """Writes members and notes the samples they should give."""

    def __init__(self, path: Path) -> None:
        self.tar = tarfile.open(path, "w")  # noqa: SIM115  (closed by `close`)
        self.expected: list[Expected] = []

    def add(self, name: str, data: bytes) -> None:
        """One regular file."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self.tar.addfile(member, io.BytesIO(data))

    def special(self, name: str, kind: bytes, target: str = "") -> None:
        """A link, a device or a folder."""
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        self.tar.addfile(member)

    def sample(self, name: str, data: bytes, label: int, outcome: Reason | None = None) -> None:
        """An image and its label."""
        key = name.partition(".")[0] if not name.startswith("../") else name.rpartition(".")[0]
        self.add(name, data)
        self.add(f"{key}.cls", str(label).encode())
        self.expect(key, outcome, label)

    def expect(
        self, key: str, outcome: Reason | None, label: int | None = None, duplicate: bool = False
    ) -> None:
        """Note the outcome of what was just written."""
        self.expected.append(Expected(key, outcome, label, duplicate))


def write_tar(path: Path, good: int = 40) -> list[Expected]:
    """A shard of `good` good images with every kind of bad file and bad member among them."""
    writer = TarWriter(path)
    todo = [(f"good{number:04d}.jpg", encode(picture(1000 + number))) for number in range(good)]
    written = cases()
    for number, case in enumerate(written):
        for name, data in todo[number * good // len(written) : (number + 1) * good // len(written)]:
            writer.sample(name, data, number % 10)
        writer.sample(f"bad{number:03d}.{case.name}", case.data, number % 10, case.outcome)
    _bad_members(writer)
    writer.tar.close()
    return writer.expected


def write_good_tar(path: Path, good: int = 40) -> None:
    """What is used of `write_tar` alone: same keys, labels and bytes, and no duplicates."""
    writer = TarWriter(path)
    written = cases()
    for number, case in enumerate(written):
        for index in range(number * good // len(written), (number + 1) * good // len(written)):
            writer.sample(f"good{index:04d}.jpg", encode(picture(1000 + index)), number % 10)
        if case.outcome is None:
            writer.sample(f"bad{number:03d}.{case.name}", case.data, number % 10)
    _odd_members(writer)
    _used_once(writer)
    writer.tar.close()


def _odd_members(writer: TarWriter) -> None:
    """Members that are unusual and used all the same."""
    writer.add("no_label.jpg", encode(picture(2001)))
    writer.expect("no_label", None)
    writer.add("bad_label.jpg", encode(picture(2002)))
    writer.add("bad_label.cls", b"seven")
    writer.expect("bad_label", None)
    writer.add("negative_label.jpg", encode(picture(2003)))
    writer.add("negative_label.cls", b"-1")
    writer.expect("negative_label", None)
    writer.add("json_label.json", b'{"label": 7}')
    writer.add("json_label.jpg", encode(picture(2004)))
    writer.expect("json_label", None, 7)
    writer.add("mask.seg.png", encode(picture(2005), "PNG"))
    writer.add("mask.jpg", encode(picture(2006)))
    writer.expect("mask", None)


def _used_once(writer: TarWriter) -> None:
    """Good images whose key, or whose bytes, come again in the mixed shard."""
    writer.sample("twice.jpg", encode(picture(2101)), 1)
    writer.sample("between.jpg", encode(picture(2102)), 1)


def _bad_members(writer: TarWriter) -> None:
    _odd_members(writer)
    _used_once(writer)
    writer.sample("twice.jpg", encode(picture(2103)), 2, Reason.DUPLICATE_KEY)
    writer.add("copy.jpg", encode(picture(2101)))
    writer.expect("copy", None, duplicate=True)
    writer.sample("../outside.jpg", encode(picture(2104)), 3, Reason.UNSAFE_NAME)
    writer.sample("/absolute.jpg", encode(picture(2105)), 3, Reason.UNSAFE_NAME)
    for name, kind, target in (
        ("symlink.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ("hardlink.jpg", tarfile.LNKTYPE, "twice.jpg"),
        ("device.jpg", tarfile.CHRTYPE, ""),
        ("pipe.jpg", tarfile.FIFOTYPE, ""),
    ):
        writer.special(name, kind, target)
        writer.expect(name.removesuffix(".jpg"), Reason.NOT_A_FILE)
    writer.special("folder.jpg", tarfile.DIRTYPE)  # A folder is no sample, whatever its name.
    writer.add("lonely.cls", b"3")
    writer.expect("lonely", Reason.NO_IMAGE)
