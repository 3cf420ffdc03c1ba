"""A creature: a big head on a small body, drawn part by part.

Knows how each variant of the ears, eyes, nose and pattern looks; not which variant makes a class.
Lengths are in head heights: the head has a radius of 1 and its centre is the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zfscale.datasets.canvas import Canvas, Colour, Frame, Points, bezier, ellipse, stroke
from zfscale.datasets.scenery import colour

PARTS = ("ears", "eyes", "nose", "pattern")
FEET = 2.3
"""Height of the soles below the centre of the head."""

INK: Colour = (38, 30, 42)
WHITE: Colour = (250, 248, 242)


@dataclass(frozen=True)
class Look:
    """All of a creature that says nothing of its class."""

    fur: Colour
    shade: Colour
    pale: Colour
    accent: Colour
    mark: Colour
    iris: Colour
    turn: float
    """Where the face looks, -1 (left) to 1 (right)."""
    tilt: float
    """Rotation of the head against the body, radians."""
    arms: tuple[float, float]
    """Angle of each arm above its rest, radians."""
    tail: float
    """Side and height of the tail, -1 to 1."""
    jitter: NDArray[np.float64]
    """(16, 2) in -1..1: small irregularities of the pattern."""


@dataclass(frozen=True)
class Pen:
    """What a part is drawn with: the canvas, where, in which look, owned by which part."""

    canvas: Canvas
    frame: Frame
    look: Look
    part: int = 0

    def fill(self, polygon: Points, paint: Colour, frame: Frame | None = None) -> None:
        """Fill a polygon for the part."""
        self.canvas.fill(frame or self.frame, polygon, paint, self.part)

    def ball(self, x: float, y: float, rx: float, ry: float, paint: Colour) -> None:
        """An ellipse with a dark outline."""
        self.fill(ellipse(x, y, rx + 0.07, ry + 0.07), INK)
        self.fill(ellipse(x, y, rx, ry), paint)

    def shape(self, outline: Points, paint: Colour, frame: Frame | None = None) -> None:
        """A polygon with a dark outline."""
        self.canvas.outline(frame or self.frame, outline, 0.14, INK, self.part)
        self.fill(outline, paint, frame)


def random_look(rng: np.random.Generator) -> Look:
    """Colours, pose of head and limbs, irregularities."""
    hue, accent = rng.uniform(size=2)
    saturation, value = rng.uniform(0.25, 0.75), rng.uniform(0.6, 0.98)
    white_mark = rng.uniform() < 0.5 and (saturation > 0.5 or value < 0.75)
    return Look(
        fur=colour(hue, saturation, value),
        shade=colour(hue + 0.02, min(1.0, saturation + 0.12), value * 0.82),
        pale=colour(hue, saturation * 0.35, min(1.0, value * 1.15)),
        accent=colour(accent, rng.uniform(0.45, 0.8), rng.uniform(0.75, 1.0)),
        mark=WHITE if white_mark else colour(hue + rng.normal(0, 0.1), 0.7, 0.3 * value),
        iris=colour(rng.uniform(), 0.7, rng.uniform(0.5, 0.85)),
        turn=rng.uniform(-1, 1),
        tilt=rng.uniform(-0.25, 0.25),
        arms=(rng.uniform(-0.3, 1.9), rng.uniform(-0.3, 1.9)),
        tail=rng.uniform(-1, 1),
        jitter=rng.uniform(-1, 1, (16, 2)),
    )


def draw(canvas: Canvas, frame: Frame, look: Look, variants: Mapping[str, str]) -> None:
    """Draw a creature. A part that `variants` does not name is left out.

    Parts never cover each other in full: back to front body, pattern, ears, head, eyes, nose.
    """
    head = frame.at(0, 0, look.tilt)
    face = head.at(0.2 * look.turn, 0.06)
    places = {"ears": head, "eyes": face, "nose": face, "pattern": frame}

    def part(name: str) -> None:
        if name in variants:
            pen = Pen(canvas, places[name], look, PARTS.index(name) + 1)
            VARIANTS[name][variants[name]](pen)

    _body(Pen(canvas, frame, look))
    part("pattern")
    part("ears")
    _head(Pen(canvas, head, look), Pen(canvas, face, look))
    part("eyes")
    part("nose")


def _body(pen: Pen) -> None:
    look = pen.look
    side = 1 if look.tail >= 0 else -1
    tail = bezier((0.5 * side, 1.9), (1.5 * side, 2.0), (1.35 * side, 1.3 - 0.4 * abs(look.tail)))
    pen.fill(stroke(tail, 0.40), INK)
    pen.ball(tail[-1, 0], tail[-1, 1], 0.17, 0.17, look.shade)
    pen.fill(stroke(tail, 0.26), look.fur)
    for side, lift in zip((-1, 1), look.arms, strict=True):
        arm = pen.frame.at(0.72 * side, 1.1, side * (0.9 - lift) * -1)
        outline = ellipse(0.3 * side, 0.1, 0.42, 0.17)
        pen.shape(outline, look.fur, arm)
    for side in (-1, 1):
        pen.ball(0.42 * side, FEET - 0.16, 0.34, 0.18, look.shade)
    pen.ball(0, 1.4, 0.88, 0.84, look.fur)


def _head(pen: Pen, face: Pen) -> None:
    look = pen.look
    pen.ball(0, 0, 1.16, 1.0, look.shade)
    pen.fill(ellipse(0.03 * look.turn, -0.05, 1.1, 0.93), look.fur)
    for side in (-1, 1):
        face.fill(ellipse(0.72 * side, 0.34, 0.17, 0.11), look.accent)
    face.fill(stroke(bezier((-0.22, 0.62), (0, 0.82), (0.22, 0.62)), 0.08), INK)


# Ears -------------------------------------------------------------------------------------


def _pair_of_ears(pen: Pen, x: float, y: float, angle: float, outer: Points, inner: Points) -> None:
    for side in (-1, 1):
        place = pen.frame.at(x * side, y, angle * side)
        mirror = np.array([side, 1.0])
        pen.shape(outer * mirror, pen.look.fur, place)
        pen.fill(inner * mirror, pen.look.accent, place)


def _pointed_ears(pen: Pen) -> None:
    outer = np.array([(-0.36, 0.3), (0.0, -0.5), (0.36, 0.3)])
    _pair_of_ears(pen, 0.6, -0.88, 0.35, outer, outer * 0.55 + (0, 0.02))


def _floppy_ears(pen: Pen) -> None:
    outer = bezier((-0.25, 0.0), (0.5, -0.75), (0.62, 0.35))
    outer = np.concatenate([outer, bezier((0.6, 0.4), (0.3, 0.4), (0.2, 0.25))])
    _pair_of_ears(pen, 0.6, -0.82, 0.1, outer, outer * 0.5 + (0.16, 0.02))


def _long_ears(pen: Pen) -> None:
    _pair_of_ears(pen, 0.4, -1.4, 0.16, ellipse(0, 0, 0.27, 0.72), ellipse(0, 0.02, 0.13, 0.5))


def _round_ears(pen: Pen) -> None:
    _pair_of_ears(pen, 0.62, -1.08, 0.0, ellipse(0, 0, 0.47, 0.47), ellipse(0, 0, 0.28, 0.28))


def _antennae(pen: Pen) -> None:
    for side in (-1, 1):
        stalk = bezier((0.14 * side, -0.8), (0.18 * side, -1.5), (0.5 * side, -1.62))
        pen.fill(stroke(stalk, 0.16), INK)
        pen.ball(0.52 * side, -1.66, 0.22, 0.22, pen.look.accent)


# Eyes -------------------------------------------------------------------------------------


def _eye(pen: Pen, x: float, y: float, radius: float) -> None:
    look = 0.25 * radius * pen.look.turn
    pen.ball(x, y, radius, radius, WHITE)
    pen.fill(ellipse(x + look, y, radius * 0.68, radius * 0.68), pen.look.iris)
    pen.fill(ellipse(x + look, y, radius * 0.42, radius * 0.42), INK)
    glint = radius * 0.2
    pen.fill(ellipse(x + look + glint, y - glint, glint, glint), WHITE)


def _round_eyes(pen: Pen) -> None:
    for side in (-1, 1):
        _eye(pen, 0.38 * side, -0.18, 0.25)


def _dot_eyes(pen: Pen) -> None:
    for side in (-1, 1):
        pen.fill(ellipse(0.38 * side, -0.16, 0.15, 0.2), INK)
        pen.fill(ellipse(0.38 * side + 0.05, -0.24, 0.05, 0.06), WHITE)


def _one_eye(pen: Pen) -> None:
    _eye(pen, 0, -0.26, 0.46)


def _three_eyes(pen: Pen) -> None:
    for x, y in ((-0.36, -0.08), (0.36, -0.08), (0.0, -0.56)):
        _eye(pen, x, y, 0.24)


# Nose -------------------------------------------------------------------------------------


def _button_nose(pen: Pen) -> None:
    pen.fill(ellipse(0, 0.32, 0.17, 0.13), INK)


def _triangle_nose(pen: Pen) -> None:
    pen.shape(np.array([(-0.14, 0.25), (0.14, 0.25), (0.0, 0.42)]), pen.look.accent)


def _snout(pen: Pen) -> None:
    pen.ball(0, 0.4, 0.42, 0.32, pen.look.accent)
    for side in (-1, 1):
        pen.fill(ellipse(0.16 * side, 0.4, 0.08, 0.13), INK)


def _beak(pen: Pen) -> None:
    pen.shape(np.array([(-0.42, 0.28), (0, 0.12), (0.42, 0.28), (0, 0.85)]), pen.look.accent)
    pen.fill(stroke(bezier((-0.36, 0.32), (0, 0.5), (0.36, 0.32)), 0.07), INK)


def _trunk(pen: Pen) -> None:
    line = bezier((0, 0.22), (-0.1, 1.3), (0.62, 1.0))
    pen.fill(stroke(line, 0.66, 0.75), INK)
    pen.ball(line[-1, 0], line[-1, 1], 0.19, 0.19, pen.look.shade)
    pen.fill(stroke(line, 0.52, 0.72), pen.look.fur)
    for at in (3, 6, 9):
        pen.fill(stroke(np.array([line[at] - (0.2, 0), line[at] + (0.14, 0)]), 0.07), INK)


# Pattern ----------------------------------------------------------------------------------


def _bib(pen: Pen) -> None:
    pen.fill(ellipse(0, 1.5, 0.55, 0.58), pen.look.pale)


def _dipped(pen: Pen) -> None:
    pen.fill(_band(1.62, 2.2), pen.look.pale)


def _stripes(pen: Pen) -> None:
    for y in (1.08, 1.42, 1.76, 2.08):
        pen.fill(_band(y, y + 0.17), pen.look.mark)


def _spots(pen: Pen) -> None:
    spots = ((-0.5, 1.25), (0.02, 1.22), (0.5, 1.3), (-0.28, 1.62), (0.26, 1.66), (-0.02, 2.0),
             (-0.62, 1.75), (0.62, 1.78))  # fmt: skip
    for (x, y), (dx, dy) in zip(spots, pen.look.jitter, strict=False):
        pen.fill(ellipse(x + 0.05 * dx, y + 0.05 * dy, 0.16, 0.15), pen.look.mark)


def _band(top: float, bottom: float) -> Points:
    """The slice of the body between two heights."""
    y = np.linspace(top, bottom, 8)
    x = 0.86 * np.sqrt(np.maximum(0, 1 - ((y - 1.4) / 0.82) ** 2))
    return np.concatenate([np.stack([-x, y], axis=1), np.stack([x, y], axis=1)[::-1]])


VARIANTS: Mapping[str, Mapping[str, Callable[[Pen], None]]] = {
    "ears": {
        "pointed": _pointed_ears,
        "floppy": _floppy_ears,
        "long": _long_ears,
        "round": _round_ears,
        "antennae": _antennae,
    },
    "eyes": {"round": _round_eyes, "dots": _dot_eyes, "one": _one_eye, "three": _three_eyes},
    "nose": {
        "button": _button_nose,
        "triangle": _triangle_nose,
        "snout": _snout,
        "beak": _beak,
        "trunk": _trunk,
    },
    "pattern": {"bib": _bib, "dipped": _dipped, "stripes": _stripes, "spots": _spots},
}
