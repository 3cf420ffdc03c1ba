"""What encoded bytes say of themselves before anything is decoded: format, size, pitfalls.

The first bytes decide, never the name. Nothing is allocated from what a header claims.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from zfscale.records import Reason


class Quarantine(Exception):
    """An image that cannot be used: the reason, and a detail in words for the log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Header:
    """`kind` is jpeg, png, webp, gif or bmp; `width` and `height` in pixels. Not `complete`: the
    file stops before the mark that ends it. `scan` is where the compressed data of a JPEG begin.
    """

    kind: str
    width: int
    height: int
    alpha: bool = False
    complete: bool = True
    scan: int = 0


_OTHERS = (
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"ftyp", "AVIF, HEIC or video"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "icon"),
    (0, b"P4", "PNM"),
    (0, b"P5", "PNM"),
    (0, b"P6", "PNM"),
)

END_OF_IMAGE = b"\xff\xd9"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECODABLE_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}


def inspect(data: bytes) -> Header:
    """Read the header. Raises Quarantine for what is no image, unsupported, animated or cut."""
    if not data:
        raise Quarantine(Reason.EMPTY, "no bytes")
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"BM") and data[6:10] == bytes(4):
        return _bmp(data)
    for offset, magic, name in _OTHERS:
        if data.startswith(magic, offset):
            raise Quarantine(Reason.UNSUPPORTED_FORMAT, f"{name}; JPEG, PNG or WebP is expected")
    if b"<svg" in data[:1024]:
        raise Quarantine(Reason.UNSUPPORTED_FORMAT, "SVG; JPEG, PNG or WebP is expected")
    raise Quarantine(Reason.NOT_AN_IMAGE, f"begins with {data[:12]!r}")


def _jpeg(data: bytes) -> Header:
    """Walk the marker segments to the first scan (ITU T.81, annex B)."""
    size: tuple[int, int] | None = None
    place = 2
    while True:
        place = data.find(b"\xff", place)
        while place >= 0 and data[place + 1 : place + 2] == b"\xff":
            place += 1
        if place < 0 or place + 4 > len(data):
            raise Quarantine(Reason.TRUNCATED, "the file ends within the JPEG header")
        marker = data[place + 1]
        if marker in _STANDALONE or marker == 0x00:
            place += 2
            continue
        if marker == 0xD9:
            raise Quarantine(Reason.CORRUPT, "the JPEG ends before its image data")
        if marker in _FRAMES:
            size = _jpeg_frame(data, place, marker)
        length = struct.unpack_from(">H", data, place + 2)[0]
        place += 2 + length
        if marker == 0xDA:
            break
    if size is None:
        raise Quarantine(Reason.CORRUPT, "the JPEG has no frame header")
    # Nearly every JPEG ends with its mark, and searching all of it takes a while.
    complete = data.endswith(END_OF_IMAGE) or data.find(END_OF_IMAGE, place) >= 0
    return Header("jpeg", *size, complete=complete, scan=place)


def _jpeg_frame(data: bytes, place: int, marker: int) -> tuple[int, int]:
    if place + 9 > len(data):
        raise Quarantine(Reason.TRUNCATED, "the file ends within the JPEG header")
    if marker not in _DECODABLE_FRAMES:
        raise Quarantine(Reason.UNSUPPORTED_FORMAT, "lossless or hierarchical JPEG")
    depth, height, width = struct.unpack_from(">BHH", data, place + 4)
    if depth != 8:
        raise Quarantine(Reason.UNSUPPORTED_DEPTH, f"{depth} bits a channel; 8 are expected")
    return width, height


def _png(data: bytes) -> Header:
    """Walk the chunks (PNG specification, section 5)."""
    if len(data) < 33:
        raise Quarantine(Reason.TRUNCATED, "the file ends within the PNG header")
    if data[12:16] != b"IHDR":
        raise Quarantine(Reason.CORRUPT, "the PNG does not begin with its header")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if depth > 8:
        raise Quarantine(Reason.UNSUPPORTED_DEPTH, f"{depth} bits a channel; 8 are expected")
    alpha = bool(colour & 4)
    place = 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"acTL":
            raise Quarantine(Reason.ANIMATED, "animated PNG")
        alpha = alpha or name == b"tRNS"
        if name == b"IEND":
            return Header("png", width, height, alpha)
        place += 12 + length
    return Header("png", width, height, alpha, complete=False)


def _webp(data: bytes) -> Header:
    """Read the first chunk (WebP container specification; RFC 6386 section 9.1, RFC 9649)."""
    if len(data) < 30:
        raise Quarantine(Reason.TRUNCATED, "the file ends within the WebP header")
    complete = 8 + struct.unpack_from("<I", data, 4)[0] <= len(data)
    chunk = data[12:16]
    if chunk == b"VP8X":
        if data[20] & 0x02:
            raise Quarantine(Reason.ANIMATED, "animated WebP")
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return Header("webp", width, height, bool(data[20] & 0x10), complete)
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return Header("webp", width, height, bool(bits >> 28 & 1), complete)
    if chunk == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        return Header("webp", width, height, complete=complete)
    raise Quarantine(Reason.CORRUPT, f"WebP begins with the unknown chunk {chunk!r}")


def _gif(data: bytes) -> Header:
    """Read the logical screen; only a decoder finds the end."""
    if len(data) < 13:
        raise Quarantine(Reason.TRUNCATED, "the file ends within the GIF header")
    return Header("gif", *struct.unpack_from("<HH", data, 6))


def _bmp(data: bytes) -> Header:
    """Read the size; a negative height means that rows go down."""
    if len(data) < 26:
        raise Quarantine(Reason.TRUNCATED, "the file ends within the BMP header")
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return Header("bmp", width, abs(height))
