"""The maps of an image are the rows of its table, however these are cut and ordered."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from zfscale.gallery.occluded import count_extra_features, count_projections, read_images, read_maps
from zfscale.runs.results import Results

make = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_run.py"))
sweeps = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_sweeps.py"))


@pytest.mark.parametrize("pieces", [1, 3])
def test_maps_are_the_rows_of_the_table(tmp_path: Path, pieces: int) -> None:
    """Literal: a loop over all rows of the tables, whatever image they belong to."""
    run = make["write_run"](tmp_path)
    sweeps["occlusion"](run, count=4, pieces=pieces, extra=(3, 1))
    results = Results(str(run))
    expected: dict[tuple, float] = {}
    for row in results.occlusion.itertuples():
        for name in ("activation", "probability", "predicted"):
            expected[row.image_id, name, row.y // 4, row.x // 5] = getattr(row, name)
    for row in results.occlusion_features.itertuples():
        expected[row.image_id, row.feature, row.y // 4, row.x // 5] = row.activation
    found: dict[tuple, float] = {}
    for image, one in read_maps(results):
        assert set(one.extra) == {1, 3}
        assert {extra.total for extra in one.extra.values()} == {241.0}
        grids = {name: getattr(one, name) for name in ("activation", "probability", "predicted")}
        grids |= {feature: extra.activation for feature, extra in one.extra.items()}
        for name, grid in grids.items():
            assert grid.shape == image.grid == (7, 6)
            found |= {(image.id, name, y, x): value for (y, x), value in np.ndenumerate(grid)}
    assert found == expected
    assert len(found) == 4 * 7 * 6 * 5
    assert count_extra_features(results) == 2
    assert [image.id for image, _ in read_maps(results)] == results.occlusion_images[
        "image_id"
    ].tolist()


def test_few_rows_are_held_when_the_tables_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are read as they are needed: one image at a time here, where a batch is an image."""
    run = make["write_run"](tmp_path)
    sweeps["occlusion"](run, count=6)
    results = Results(str(run))
    dataset = results.dataset
    read = 0

    class Short:
        def __init__(self, table: str) -> None:
            self.inner = dataset(table)

        def to_batches(self, **options):
            nonlocal read
            for batch in self.inner.to_batches(**{"batch_size": 42} | options):
                read += len(batch) == 42
                yield batch

    monkeypatch.setattr(results, "dataset", Short)
    steps = [read for _ in read_maps(results)]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_positions_without_a_row_are_unknown(tmp_path: Path) -> None:
    run = make["write_run"](tmp_path)
    sweeps["occlusion"](run, count=2, pieces=7, absent=(6,))
    for _, one in read_maps(Results(str(run))["occlusion"]):
        assert np.isnan(one.activation[6]).all()
        assert np.isnan(one.predicted[6]).all()
        assert not np.isnan(one.activation[:6]).any()


def test_nulls_are_unknown(tmp_path: Path) -> None:
    run = make["write_run"](tmp_path)
    sweeps["occlusion"](run, count=1, classes=None)
    ((image, one),) = read_maps(Results(str(run))["occlusion"])
    assert image.probability is None
    assert np.isnan(one.probability).all()
    assert np.isnan(one.predicted).all()
    assert not np.isnan(one.activation).any()


def test_a_map_lies_where_the_centres_of_the_occluder_were(tmp_path: Path) -> None:
    run = make["write_run"](tmp_path)
    sweeps["occlusion"](run, count=1)
    (image,) = read_images(Results(str(run))["occlusion"])
    left, top, across, down = image.cover
    for row, column in np.ndindex(*image.grid):
        centre = row * 4 + 8 / 2, column * 5 + 10 / 2  # stride and occluder of the synthetic run
        assert top + (row + 0.5) * down / 7 == pytest.approx(centre[0])
        assert left + (column + 0.5) * across / 6 == pytest.approx(centre[1])


def test_projections_are_those_of_their_image(tmp_path: Path) -> None:
    run = make["write_run"](tmp_path)
    sweeps["occlusion"](run, count=4)
    results = Results(str(run))
    rows = results.occlusion_projections.set_index("image_id")
    assert count_projections(results) == len(rows) == 4
    for image, one in read_maps(results):
        row = rows.loc[image.id]
        assert (one.projection.y, one.projection.x) == (row.y0, row.x0)
        assert one.projection.pixels.shape == (row.height, row.width, 3)
        assert one.projection.pixels.ravel().tolist() == row.projection.tolist()


def test_a_run_without_projections_has_maps(tmp_path: Path) -> None:
    run = make["write_run"](tmp_path)
    sweeps["occlusion"](run, count=2, projected=False)
    results = Results(str(run))
    assert count_projections(results) == 0
    assert [one.projection for _, one in read_maps(results)] == [None, None]
