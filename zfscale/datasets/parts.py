"""`parts`: rendered creatures of ten classes, each told apart by one part, with every part's box.

A creature has ears, eyes, a nose and a pattern on its body. Each class has one discriminative
part in a variant of its own; the other three parts take variants that all classes share:

    class      discriminative  variant          shared variants
    hare       ears            long             pointed, floppy
    mouse      ears            round
    beetle     ears            antennae
    cyclops    eyes            one              round, dots
    spider     eyes            three
    pig        nose            snout            button, triangle
    bird       nose            beak
    elephant   nose            trunk
    tiger      pattern         stripes          bib, dipped
    ladybird   pattern         spots

Pose, scale, rotation, colours, light and background are drawn before the class is looked at, so
they say nothing of it: the evidence lies in the box of the discriminative part and nowhere else.
Image `index` of a `seed` is the same bytes for any count, order and number of processes (of one
version of numpy and Pillow).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zfscale.boxes import PartBox
from zfscale.datasets import creatures, scenery
from zfscale.datasets.canvas import Canvas, Frame
from zfscale.errors import UsageError

SIZE = 112
"""Height and width of an image in pixels."""

CLASSES = (
    ("hare", "ears", "long"),
    ("mouse", "ears", "round"),
    ("beetle", "ears", "antennae"),
    ("cyclops", "eyes", "one"),
    ("spider", "eyes", "three"),
    ("pig", "nose", "snout"),
    ("bird", "nose", "beak"),
    ("elephant", "nose", "trunk"),
    ("tiger", "pattern", "stripes"),
    ("ladybird", "pattern", "spots"),
)
"""(name, discriminative part, its variant) of every class, in the order of the labels."""

SHARED = {
    "ears": ("pointed", "floppy"),
    "eyes": ("round", "dots"),
    "nose": ("button", "triangle"),
    "pattern": ("bib", "dipped"),
}
"""Variants that say nothing of the class."""


@dataclass(frozen=True, slots=True)
class DrawnPart(PartBox):
    """The visible pixels of a part, in whole pixels, and the variant that was drawn."""

    variant: str = ""


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the creature stands: centre of its head and head radius in pixels, angles in degrees.

    `turn` is where the face looks, -1 (left) to 1 (right).
    """

    x: float
    y: float
    scale: float
    rotation: float
    head_tilt: float
    turn: float


@dataclass(frozen=True, slots=True)
class Rendered:
    """An image (SIZE x SIZE, RGB), its label, the boxes of its parts and its pose."""

    image: Image.Image
    label: int
    boxes: tuple[DrawnPart, ...]
    pose: Pose


def render(
    seed: int, index: int, label: int | None = None, without: Sequence[str] = ()
) -> Rendered:
    """Image `index` of a seed. Its class is `index` modulo 10 unless `label` says another.

    Two labels of one (seed, index) differ in discriminative parts only. Parts named in `without`
    are left out, all else stays: what a part contributes to an image.
    """
    rng = np.random.default_rng((seed, index))
    label = index % len(CLASSES) if label is None else label
    frame, look = _random_frame(rng), creatures.random_look(rng)
    variants = {part: SHARED[part][rng.integers(len(SHARED[part]))] for part in creatures.PARTS}
    _, discriminative, variant = CLASSES[label]
    variants[discriminative] = variant

    ground = scenery.shadow(scenery.background(rng, SIZE), frame, creatures.FEET)
    canvas = Canvas(ground)
    drawn = {part: kind for part, kind in variants.items() if part not in without}
    creatures.draw(canvas, frame, look, drawn)
    corners = canvas.boxes([creatures.PARTS.index(part) + 1 for part in drawn])
    boxes = tuple(
        DrawnPart(part, *box, part == discriminative, drawn[part])
        for part, box in zip(drawn, corners, strict=True)
        if box is not None
    )
    pose = Pose(
        x=round(frame.origin[0], 2),
        y=round(frame.origin[1], 2),
        scale=round(frame.scale, 2),
        rotation=round(float(np.degrees(frame.angle)), 2),
        head_tilt=round(float(np.degrees(look.tilt)), 2),
        turn=round(look.turn, 3),
    )
    return Rendered(scenery.light(rng, canvas.image()), label, boxes, pose)


def write(
    out: str | Path,
    count: int,
    seed: int = 0,
    shard_size: int = 1000,
    start: int = 0,
    split: str = "parts",
) -> list[Path]:
    """Write images `start` to `start + count` of a seed as WebDataset tars, and classes.json.

    A sample is `NNNNNN.jpg`, `.cls` (the label in digits) and `.json` (class, class name, boxes,
    pose). Shard `SPLIT-n.tar` holds the images n * shard_size and on, so several processes may
    write into one folder. Returns the shards. Raises UsageError for a senseless count or a shard
    that is already there.
    """
    if count < 1 or shard_size < 1 or start < 0 or seed < 0:
        raise UsageError(
            f"parts: count {count}, shard size {shard_size}, start {start}, seed {seed}: "
            "expected at least one image, one image a shard, a start and a seed of 0 or more"
        )
    out = Path(out)
    stop = start + count
    numbers = range(start // shard_size, (stop - 1) // shard_size + 1)
    shards = [out / f"{split}-{number:05}.tar" for number in numbers]
    if present := [shard for shard in shards if shard.exists()]:
        raise UsageError(f"parts: {present[0]} is already there; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name, _, _ in CLASSES]
    (out / "classes.json").write_text(json.dumps(names) + "\n", encoding="utf-8")
    for number, shard in zip(numbers, shards, strict=True):
        first = number * shard_size
        _write_shard(shard, seed, range(max(first, start), min(first + shard_size, stop)))
    return shards


def _write_shard(path: Path, seed: int, indices: range) -> None:
    temporary = path.with_suffix(".partial")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            for suffix, data in _encode(render(seed, index)).items():
                member = tarfile.TarInfo(f"{index:06}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    temporary.replace(path)


def _encode(rendered: Rendered) -> dict[str, bytes]:
    jpeg = io.BytesIO()
    rendered.image.save(jpeg, "JPEG", quality=92, subsampling=0)
    about = {
        "class": rendered.label,
        "class_name": CLASSES[rendered.label][0],
        "parts": [asdict(box) for box in rendered.boxes],
        "pose": asdict(rendered.pose),
    }
    return {
        "jpg": jpeg.getvalue(),
        "cls": str(rendered.label).encode(),
        "json": json.dumps(about).encode(),
    }


def _random_frame(rng: np.random.Generator) -> Frame:
    scale = rng.uniform(17, 23)
    angle = rng.uniform(-0.45, 0.45)
    # The middle of the creature lies below its head; the reach around it stays in the image.
    room = max(0.0, SIZE / 2 - 2.45 * scale)
    x, y = SIZE / 2 + rng.uniform(-1, 1, 2) * (room + 2)
    return Frame((float(x), float(y)), scale, angle).at(0, -0.2)
