"""What `correspondence` covers: the boxes of parts, and random boxes of the same size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np

from zfscale.boxes import PartBox, in_input
from zfscale.errors import UsageError
from zfscale.records import Box, Column, Image, Preprocessing, Table

ITSELF = -1
"""The draw that stands for the part itself; null in the published table."""
Only = tuple[str, ...] | Literal["discriminative"] | None
"""Which parts: those of some names, those that are marked as discriminative, or all."""

OCCLUDERS = Table(
    name="correspondence_images",
    version=2,
    columns=(
        Column("image_id", "string", "content hash of the image"),
        Column("key", "string", "name of the image in its collection"),
        Column("label", "int64", "true class", True),
        Column("part", "string", "name of the part"),
        Column("discriminative", "bool", "whether the class is known to rest on this part"),
        Column("draw", "int64", "number of the random box; null: the part itself", True),
        Column("y0", "int64", "top of the occluder in pixels of the network's input"),
        Column("x0", "int64", "left of the occluder"),
        Column("y1", "int64", "bottom of the occluder, exclusive"),
        Column("x1", "int64", "right of the occluder, exclusive"),
        Column("area", "float64", "fraction of the input that it covers, 0..1"),
    ),
    key=("image_id", "part", "draw"),
    identity=(
        *("image_id", "label", "part", "discriminative", "draw"),
        *("y0", "x0", "y1", "x1", "area"),
    ),
)


@dataclass(frozen=True, slots=True)
class CoveredBox:
    """A box of an image that is covered: that of a part (`draw` is ITSELF), or a random one."""

    part: str
    discriminative: bool
    draw: int
    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def box(self) -> Box:
        """Where it lies, in pixels of the network's input."""
        return Box(self.y0, self.x0, self.y1, self.x1)

    def row(self, image: Image, crop: tuple[int, int]) -> tuple[Any, ...]:
        """A row of `correspondence_images`; `crop` is (height, width) of the input."""
        area = (self.y1 - self.y0) * (self.x1 - self.x0) / (crop[0] * crop[1])
        return (image.id, image.key, image.label, *astuple(self), area)


def parts_in_input(
    images: Sequence[Image],
    parts_of: Mapping[str, Sequence[PartBox]],
    only: Only,
    preprocessing: Preprocessing,
) -> list[tuple[Image, list[CoveredBox]]]:
    """The images that show parts, with their boxes in pixels of the network's input.

    `parts_of` maps image ids to boxes in pixels of the stored image; what is cropped away is left
    out. Raises UsageError where `only` names a part that no image has.
    """
    names = {part.part for parts in parts_of.values() for part in parts}
    missing = [name for name in only if name not in names] if isinstance(only, tuple) else []
    if missing and names:
        raise UsageError(
            f"analyses.correspondence.only: {missing[0]!r}: no chosen image has such a part; they "
            f"have {', '.join(sorted(names))}"
        )
    with_parts = []
    for image in images:
        parts = [part for part in parts_of.get(image.id, ()) if _is_wanted(part, only)]
        placed = [
            (part, in_input(part, image.width, image.height, preprocessing)) for part in parts
        ]
        boxes = [
            CoveredBox(part.part, part.discriminative, ITSELF, *box)
            for part, box in placed
            if box is not None
        ]
        if boxes:
            with_parts.append((image, boxes))
    return with_parts


def _is_wanted(part: PartBox, only: Only) -> bool:
    if only == "discriminative":
        return part.discriminative
    return only is None or part.part in only


def random_box(
    box: CoveredBox, image_id: str, draw: int, seed: int, crop: tuple[int, int]
) -> CoveredBox:
    """A box of the same size anywhere in the input (height and width `crop`), uniformly.

    The same for one seed, image, part and draw, whatever else is drawn.
    """
    text = json.dumps([seed, image_id, box.part, draw])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    random = np.random.default_rng(int.from_bytes(digest, "big"))
    height, width = box.y1 - box.y0, box.x1 - box.x0
    y = int(random.integers(0, crop[0] - height + 1))
    x = int(random.integers(0, crop[1] - width + 1))
    return CoveredBox(box.part, box.discriminative, draw, y, x, y + height, x + width)
