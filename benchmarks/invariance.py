"""Invariance of features on held-out rendered images, as in Figure 5 of the paper.

Zeiler & Fergus (ECCV 2014), section 4.1: how far the features of the first and the last hidden
layer move when images are translated, scaled and rotated, and what becomes of the probability of
the true class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import zfscale
from benchmarks._figure import Chart, Line, svg
from benchmarks._report import Report
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.worker import Serial
from zfscale.gallery import charts
from zfscale.job import Job

MODEL = "zfscale:zfnet-mini"
LAYERS = ("conv1", "relu7")
SEED = 2
"""The network was trained on seed 0 and watched on seed 1."""
AMOUNTS: Mapping[str, Any] = {
    "vertical": {"from": -30, "to": 30, "step": 1},
    "scale": {"from": 1, "to": 1.8, "step": 0.05},
    "rotation": {"from": 0, "to": 360, "step": 5},
}
SHOWN = {
    "vertical": (0, 1, 2, 3, 4, 10, 20, 30),
    "scale": (1, 1.1, 1.2, 1.4, 1.6, 1.8),
    "rotation": (0, 5, 10, 30, 60, 90, 180, 360),
}
"""Amounts that get a row in the table; the figure has all."""
UNITS = {
    "vertical": ("vertical translation", "pixels down, of 112"),
    "scale": ("scale", "factor"),
    "rotation": ("rotation", "degrees anticlockwise"),
}
TICKS = {"vertical": 10, "scale": 0.2, "rotation": 90}
COLOURS = ("#0072b2", "#d55e00", "#222222")


def run(count: int = 200, batch: int = 32, amounts: Mapping[str, Any] = AMOUNTS) -> Report:
    table = swept(count, batch, amounts)
    index = ["transform", "amount"]
    distance = table.pivot_table(index=index, columns="layer", values="normalised")
    once = table[table["layer"] == LAYERS[0]]
    probability = once.groupby(index)["probability"].mean()
    right = (once["predicted"] == once["label"]).groupby([once[name] for name in index]).mean()
    rows = [
        (
            *(name, f"{amount:g}", *(f"{distance.loc[(name, amount), one]:.3f}" for one in LAYERS)),
            *(f"{probability[name, amount]:.3f}", f"{right[name, amount]:.1%}"),
        )
        for name, listed in SHOWN.items()
        for amount in listed
        if (name, amount) in distance.index
    ]
    header = ("transform", "amount", *LAYERS, "probability", "right")
    note = (
        "![Distance of features and probability by amount of transform](invariance.svg)\n\n"
        f"{MODEL} with its own weights, {count:,} images of the parts data set, seed {SEED}, which "
        f"the network has not seen. Means over the images: {' and '.join(LAYERS)} are the distance "
        "of features from those of the original, over the norm of these; probability is that of "
        "the true class, right the fraction of images whose most probable class is the true one."
    )
    return Report(header, rows, note, figure=_figure(distance, probability))


def swept(count: int, batch: int, amounts: Mapping[str, Any]) -> pd.DataFrame:
    """The table `invariance` of fresh images."""
    with tempfile.TemporaryDirectory() as folder:
        parts.write(Path(folder, "images"), count, SEED)
        options = {"images": "all", "layers": LAYERS, **amounts}
        job = Job.model_validate(
            {"run": f"{folder}/run", "model": MODEL, "images": f"{folder}/images"}
            | {"batch": batch, "device": "cpu"}
            | {"analyses": {"scan": {"layers": ["conv1"]}, "invariance": options}}
        )
        driver.run(resolve.resolve(job), Serial, lambda event: None)
        return zfscale.open(job.run).invariance


def _figure(distance: pd.DataFrame, probability: pd.Series) -> str:
    """A column for each transform: distances above, the probability below."""
    found = [name for name in UNITS if name in distance.index.get_level_values(0)]
    far = charts.axis([0, *distance.to_numpy().ravel()], whole=True)
    above, below = [], []
    for name in found:
        title, unit = UNITS[name]
        mine = distance.loc[name]
        x = charts.axis(mine.index, step=TICKS[name])
        lines = [
            Line(f"distance, {layer}", colour, mine.index, mine[layer])
            for layer, colour in zip(LAYERS, COLOURS, strict=False)
        ]
        above.append(Chart(f"Normalised distance: {title}", unit, tuple(lines), x, far))
        line = Line("probability of the true class", COLOURS[-1], mine.index, probability[name])
        whole = charts.axis([0, 1], most=6)
        below.append(Chart(f"Probability: {title}", unit, (line,), x, whole))
    return svg([above, below], "Invariance of features, as in Figure 5 of Zeiler & Fergus (2014)")
