"""Curves of the invariance chapter."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from zfscale.gallery import curves
from zfscale.runs.results import Results

make = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_run.py"))
sweeps = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_sweeps.py"))


def test_curves_and_means_are_those_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Literal: look every value up in the DataFrame."""
    monkeypatch.setattr(curves, "DRAWN", 4)
    run = make["write_run"](tmp_path)
    sweeps["invariance"](run, count=6, layers=("conv2", "fc9"))
    results = Results(str(run))
    found = curves.read(results["invariance"], results.layers)
    frame = results.invariance
    assert found.count == 6
    assert [image.id for image in found.drawn] == frame["image_id"].unique()[:4].tolist()
    assert found.layers == ("conv2", "fc9")  # a scanned one first, then one that was not
    assert found.amounts == {
        "vertical": (-4.0, 0.0, 4.0),
        "scale": (1.0, 1.4, 1.8),
        "rotation": (0.0, 90.0, 180.0, 270.0),
    }
    for (transform, layer, measure), mean in found.means.items():
        rows = frame[(frame["transform"] == transform) & (frame["layer"] == layer)]
        for at, amount in enumerate(found.amounts[transform]):
            these = rows[rows["amount"] == amount]
            assert mean[at] == pytest.approx(these[measure].astype(float).mean(), rel=1e-12)
            for number, image in enumerate(found.drawn):
                (value,) = these[these["image_id"] == image.id][measure]
                assert found.single[transform, layer, measure][number, at] == value
    assert len(found.means) == 3 * 2 * 3


def test_a_network_without_classes_has_no_probability(tmp_path: Path) -> None:
    run = make["write_run"](tmp_path)
    sweeps["invariance"](run, count=2, classes=None)
    found = curves.read(Results(str(run))["invariance"], Results(str(run)).layers)
    assert np.isnan(found.means["scale", "conv1", "probability"]).all()
    assert np.isnan(found.single["scale", "conv1", "probability"]).all()
    assert not np.isnan(found.means["scale", "conv1", "distance"]).any()
