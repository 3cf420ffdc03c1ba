"""Correspondence of parts on held-out rendered images, as in Table 1 of the paper.

Zeiler & Fergus (ECCV 2014), section 4.3: the mean Hamming distance, over all pairs of images, of
the signs of what covering a part changes; against random boxes of the same sizes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

import zfscale
from benchmarks._report import Report
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.worker import Serial
from zfscale.job import Job

MODEL = "zfscale:zfnet-mini"
SEED = 2
"""The network was trained on seed 0 and watched on seed 1."""


def run(count: int = 200, draws: int = 10, batch: int = 40) -> Report:
    rows = []
    for only in (None, "discriminative"):
        table = compared(count, draws, batch, only).set_index(["layer", "part", "random"])
        for layer in table.index.unique("layer"):
            found = table.loc[layer]
            for part in found.index[~found.index.get_level_values("random")].unique("part"):
                name = f"discriminative {part}" if only else part
                rows.append(_row(layer, name, found.loc[(part, False)], found.loc[(part, True)]))
            pooled = found.loc[("random", True)]
            name = "discriminative parts together" if only else "parts together"
            rows.append(_row(layer, name, None, pooled))
    header = ("layer", "part", "images", "pairs", "part", "random boxes")
    header += ("part / chance", "random / chance")
    note = (
        f"{MODEL} with its own weights, {count:,} images of the parts data set, seed {SEED}, which "
        f"the network has not seen. Mean distance ± standard deviation over the pairs; {draws} "
        "random boxes an image and part, so that many times the pairs. / chance: mean distance "
        "over that of the same signs shuffled within each image; less is more correspondence. "
        "A discriminative part is compared among the images whose class rests on it."
    )
    return Report(header, rows, note)


def compared(count: int, draws: int, batch: int, only: str | None) -> pd.DataFrame:
    """The table `correspondence` of fresh images."""
    with tempfile.TemporaryDirectory() as folder:
        parts.write(Path(folder, "images"), count, SEED)
        options = {"images": "all", "draws": draws, "only": only}
        job = Job.model_validate(
            {"run": f"{folder}/run", "model": MODEL, "images": f"{folder}/images"}
            | {"batch": batch, "device": "cpu"}
            | {"analyses": {"scan": {"layers": ["conv5"]}, "correspondence": options}}
        )
        driver.run(resolve.resolve(job), Serial, lambda event: None)
        return zfscale.open(job.run).correspondence


def _row(layer: str, name: str, part: pd.Series | None, random: pd.Series) -> tuple[str, ...]:
    if part is None:
        images, pairs, distance, share = f"{random['images']:,}", "", "", ""
    else:
        images, pairs = f"{part['images']:,}", f"{part['pairs']:,}"
        distance, share = _spread(part), f"{part['mean'] / part['chance']:.3f}"
    random_share = f"{random['mean'] / random['chance']:.3f}"
    return (layer, name, images, pairs, distance, _spread(random), share, random_share)


def _spread(row: pd.Series) -> str:
    return f"{row['mean']:.3f} ± {row['std']:.3f}"
