"""The Python API over a run: tables, arrays, patches, and what it says when something is wrong."""

import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import synthetic_sweeps
import zarr
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import Picture, Spec, _projections, add_analysis, add_scan, png, write_run

import zfscale
from zfscale.analyses.scan.tables import WINNERS
from zfscale.collection.decode import decode
from zfscale.engine import driver
from zfscale.engine.resolve import Machine, resolve
from zfscale.engine.worker import Serial
from zfscale.errors import IntegrityError, UsageError, ZfscaleError
from zfscale.job import Job
from zfscale.records import Array, Block, Box, Column, Counts, Table
from zfscale.runs.ledger import Ledger
from zfscale.runs.manifest import State
from zfscale.runs.results import crop_patch
from zfscale.storage import open_storage


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it, never write it."""
    folder = tmp_path_factory.mktemp("results")
    layers = (Spec("conv1"), Spec("conv2", field=23, size=4, stride=8), Spec("fc", field=None))
    run = write_run(folder, layers, classes=["cat", "dog", "owl"])
    switches = Array("switches.zarr/conv2/pool1", (4, 9, 2, 3, 3), "uint8", 4, 255)
    block = Block(switches, 0, np.zeros((4, 9, 2, 3, 3), np.uint8))
    add_analysis(run, "switches", blocks=[block], needs={"scan": "scan"})
    add_analysis(
        run,
        "deconvolve",
        blocks=(block for spec in layers for block in _projections(spec, 9)),
        needs={"scan": "scan", "switches": "switches"},
    )
    columns = (Column("key", "string", ""), Column("drop", "float64", ""))
    table = Table("occlusion", 1, columns, key=("key",), identity=("drop",))
    rows = {"key": np.array(["a"], object), "drop": np.array([0.5])}
    add_analysis(run, "occlusion", [(table, rows)], needs={"scan": "scan"})
    return run


def test_only_published_files_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, (Spec("conv1"),))
    (own,) = (run / "winners").glob("layer=*/*.parquet")
    own.with_name("part-00007.parquet").write_bytes(own.read_bytes())
    assert len(zfscale.open(str(run)).winners) == 4 * 9


def test_tables_are_dataframes_with_the_layer_as_text(run: Path) -> None:
    results = zfscale.open(str(run))
    assert isinstance(results.winners, pd.DataFrame)
    assert results.winners["layer"].map(type).eq(str).all()
    assert set(results.winners["layer"]) == {"conv1", "conv2", "fc"}
    assert len(results.winners) == 3 * 4 * 9
    assert len(results.features) == 3 * 4
    assert results.images["status"].value_counts().to_dict() == {
        "ok": 12,
        "duplicate": 1,
        "quarantined": 1,
    }
    assert results.winners is results.winners  # loaded once


def test_a_layer_named_by_digits_stays_text(tmp_path: Path) -> None:
    results = zfscale.open(str(write_run(tmp_path, (Spec("0"), Spec("007")))))
    assert set(results.features["layer"]) == {"0", "007"}


def test_every_published_table_is_an_attribute(run: Path) -> None:
    results = zfscale.open(str(run))
    assert sorted(results.tables) == ["features", "images", "occlusion", "winners"]
    assert results.occlusion["drop"].tolist() == [0.5]
    assert {"occlusion", "projection", "winners"} <= set(dir(results))
    with pytest.raises(AttributeError, match="'invariance'; its tables are features, images"):
        _ = results.invariance


def test_description(run: Path) -> None:
    text = repr(zfscale.open(str(run)))
    assert str(run) in text
    assert "test:net, 3 layers, 12 features" in text


def test_projections_are_those_stored(run: Path) -> None:
    stored = zarr.open_array(run / "projections.zarr", path="conv2", mode="r")
    found = zfscale.open(str(run)).projection("conv2", 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored[2])


def test_patches_are_the_boxes_of_the_scanned_images(run: Path) -> None:
    """Literal: decode by the library's own call, then copy pixel by pixel."""
    results = zfscale.open(str(run))
    found = results.patches("conv2", 1)
    rows = results.winners.query("layer == 'conv2' and feature == 1").sort_values("rank")
    assert found.shape == (9, 23, 23, 3)
    assert found.dtype == np.uint8
    outside = 0
    for patch, row in zip(found, rows.itertuples(), strict=True):
        image = results.images.query("id == @row.image_id and status == 'ok'").iloc[0]
        data = Path(image.uri).read_bytes()[int(image.offset) :]
        pixels = decode(data, results.preprocessing).pixels.numpy()
        for y in range(23):
            for x in range(23):
                at_y, at_x = int(row.y0) + y, int(row.x0) + x
                inside = 0 <= at_y < 32 and 0 <= at_x < 32
                expected = pixels[:, at_y, at_x] if inside else (120, 110, 100)
                outside += not inside
                assert tuple(patch[y, x]) == tuple(expected)
    assert outside > 0


def test_patches_are_whole_inputs_where_geometry_is_unknown(run: Path) -> None:
    results = zfscale.open(str(run))
    assert results.patches("fc", 0).shape == (9, 32, 32, 3)
    with pytest.raises(UsageError, match=r"there is no projections.zarr/fc"):
        results.projection("fc", 0)


def test_fewer_images_than_k_give_short_lists(tmp_path: Path) -> None:
    pictures = [Picture(f"p{i}", None, png(i)) for i in range(2)]
    results = zfscale.open(str(write_run(tmp_path, pictures=pictures)))
    assert len(results.projection("conv1", 0)) == len(results.patches("conv1", 0)) == 2


def test_padding_of_a_network_that_reads_bgr(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["metadata"]["preprocessing"] |= {
        "order": "BGR",
        "scale": 0.5,
        "mean": [10.0, 20.0, 30.0],
    }
    (run / "run.json").write_text(json.dumps(record))
    assert zfscale.open(str(run)).preprocessing.mean_colour == (60, 40, 20)


def test_switches(run: Path) -> None:
    results = zfscale.open(str(run))
    assert results.switches("conv2", "pool1").shape == (4, 9, 2, 3, 3)
    with pytest.raises(UsageError, match=r"no switches.zarr/conv2/pool9"):
        results.switches("conv2", "pool9")
    with pytest.raises(UsageError, match="there is no"):  # it is there, but outside of the switches
        results.switches("conv2", "../../projections.zarr/conv2")


def test_layers_and_classes(run: Path) -> None:
    results = zfscale.open(str(run))
    assert list(results.layers) == ["conv1", "conv2", "fc"]
    assert results.layers["conv2"].field == (23, 23)
    assert results.layers["fc"].field is None
    assert results.classes == ["cat", "dog", "owl"]


def test_a_url_reads_as_a_directory_does(run: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(run), "/stored/run", recursive=True)
    local, remote = zfscale.open(str(run)), zfscale.open("memory://stored/run/")
    pd.testing.assert_frame_equal(local.winners, remote.winners)
    np.testing.assert_array_equal(local.projection("conv1", 3), remote.projection("conv1", 3))
    np.testing.assert_array_equal(local.patches("conv1", 3), remote.patches("conv1", 3))
    assert remote.tables == local.tables


@pytest.mark.parametrize(
    ("layer", "feature", "message"),
    [
        ("conv9", 0, "no layer 'conv9'; its layers are conv1, conv2, fc"),
        ("conv1", 4, "conv1 has no feature 4; it has 0 to 3"),
        ("conv1", -1, "conv1 has no feature -1; it has 0 to 3"),
        ("../../secret", 0, "no layer"),
    ],
)
def test_unknown_layer_or_feature(run: Path, layer: str, feature: int, message: str) -> None:
    results = zfscale.open(str(run))
    for ask in (results.projection, results.patches, results.winners_of):
        with pytest.raises(UsageError, match=message):
            ask(layer, feature)


def test_no_run_and_unknown_address(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no run here \(no run.json\)"):
        zfscale.open(str(tmp_path))
    with pytest.raises(UsageError, match="cannot open this kind of address"):
        zfscale.open("nonsense://somewhere/run")


def test_what_is_not_complete_hides_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    needs = {"scan": "scan"}
    add_analysis(run, "occlusion", needs=needs, state=State.FAILED, error="one image is gone")
    add_analysis(run, "invariance", needs=needs, state=State.RUNNING)
    results = zfscale.open(str(run))
    assert len(results.winners) == 2 * 4 * 9
    assert "not complete: occlusion (failed), invariance (running)" in repr(results)
    assert not results["occlusion"].is_readable
    with pytest.raises(UsageError, match=r"occlusion is not complete \(state failed\): one image"):
        results["occlusion"].table()
    with pytest.raises(KeyError, match="no analysis 'nothing'; it has index, scan"):
        results["nothing"]


def test_an_analysis_under_a_name_of_its_own(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    synthetic_sweeps.occlusion(run, count=2)
    synthetic_sweeps.occlusion(run, count=3, name="small")
    results = zfscale.open(str(run))
    assert (results["small"].kind, len(results["small"].images)) == ("occlusion", 3)
    assert len(results["occlusion"].images) == len(results.occlusion_images) == 2
    pd.testing.assert_frame_equal(results["small"].table(), pd.read_parquet(run / "small"))
    assert len(pd.read_parquet(run / "small_images")) == 3


def test_each_scan_has_layers_and_arrays_of_its_own(tmp_path: Path) -> None:
    layers = (Spec("conv1"), Spec("conv2", field=23, size=4, stride=8))
    run = write_run(tmp_path, layers)
    add_scan(run, layers[1:], name="deep", deconvolve="deep-projections", k=4)
    results = zfscale.open(str(run))
    assert (list(results["scan"].layers), list(results["deep"].layers)) == (
        ["conv1", "conv2"],
        ["conv2"],
    )
    stores = {"deconvolve": "projections.zarr"}
    stores["deep-projections"] = "deep-projections_projections.zarr"
    for name, store in stores.items():
        stored = zarr.open_array(run / store, path="conv2", mode="r")
        np.testing.assert_array_equal(results[name].array("projections.zarr/conv2"), stored)
    assert not results["deep-projections"].has_array("projections.zarr/conv1")
    assert not results["deconvolve"].has_array("projections.zarr/../winners")
    with pytest.raises(UsageError, match=r"no projections.zarr/conv1: the analysis deep-proj"):
        results["deep-projections"].array("projections.zarr/conv1")


def test_the_run_speaks_for_a_scan_that_can_be_read(tmp_path: Path) -> None:
    """Its projections are then those of that scan, not of one that is under way."""
    layers = (Spec("conv1"), Spec("conv2", field=23, size=4, stride=8))
    run = write_run(tmp_path, layers)
    add_scan(run, layers[1:], name="deep", deconvolve="deep-projections", k=4)
    needs = {"index": "index"}
    add_analysis(run, "scan", needs=needs, metadata={"layers": []}, state=State.FAILED)
    results = zfscale.open(str(run))
    assert list(results.layers) == ["conv2"]
    pd.testing.assert_frame_equal(
        results.winners_of("conv2", 1),
        results["deep"].winners.query("layer == 'conv2' and feature == 1").reset_index(drop=True),
    )
    stored = results["deep-projections"].array("projections.zarr/conv2")
    np.testing.assert_array_equal(results.projection("conv2", 1), stored[1])
    assert results.patches("conv2", 1).shape == (4, 23, 23, 3)


def test_the_projections_of_the_run_are_of_its_own_scan(tmp_path: Path) -> None:
    """Another scan has projections, the one of the run has none."""
    layers = (Spec("conv1"), Spec("conv2", field=23, size=4, stride=8))
    run = write_run(tmp_path, layers)
    add_scan(run, layers, name="deep", deconvolve="deep-projections")
    add_analysis(run, "deconvolve", needs={"scan": "scan"}, state=State.FAILED, error="no disk")
    results = zfscale.open(str(run))
    assert not results.has_projections("conv2")
    with pytest.raises(UsageError, match=r"no projections.zarr/conv2: .*no disk"):
        results.projection("conv2", 1)


def test_images_are_found_in_every_scan(tmp_path: Path) -> None:
    """Those that one scan has set aside are looked for in the next."""
    run = write_run(tmp_path)
    ids = zfscale.open(str(run)).images.query("status == 'ok'")["id"].tolist()
    images = pd.read_parquet(run / "images").drop(columns="run_id")
    add_scan(run, (Spec("conv1"),), name="deep", deconvolve=None)
    few = pa.Table.from_pandas(images[images["id"].isin(ids[3:])], preserve_index=False)
    add_scan(run, (Spec("conv1"),), few)
    results = zfscale.open(str(run))
    found = results.find_images([*ids, "0" * 32])
    assert [image.id for image in found] == ids
    assert [(image.key, image.predicted, image.probability) for image in found[:1]] == [
        ("picture-00", 0, 0.5)
    ]
    assert results.find_images([]) == []


def test_results_of_a_replaced_scan_are_outdated(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    synthetic_sweeps.occlusion(run, count=2)
    add_analysis(run, "scan", needs={"index": "index"}, metadata={"layers": []})
    results = zfscale.open(str(run))
    assert results["occlusion"].is_outdated
    assert "occlusion" not in results.tables
    with pytest.raises(UsageError, match="the analysis occlusion is outdated"):
        results["occlusion"].table()
    assert "occlusion (outdated)" in repr(results)


def test_a_scan_without_winners_has_empty_tables(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    none = {column.name: np.empty(0, object) for column in WINNERS.columns}
    add_analysis(run, "scan", [(WINNERS, none)], needs={"index": "index"})
    winners = zfscale.open(str(run)).winners
    assert len(winners) == 0
    assert {"layer", "feature", "rank", "score", "image_id"} <= set(winners)


@pytest.mark.parametrize(
    ("state", "error", "told"),
    [
        (State.FAILED, "no disk", r"scan is not complete \(state failed\): no disk"),
        (State.RUNNING, None, r"scan is not complete \(state running\)"),
    ],
)
def test_a_run_whose_scan_is_not_complete_says_why(
    tmp_path: Path, state: State, error: str | None, told: str
) -> None:
    results = zfscale.open(str(write_run(tmp_path, state=state, error=error)))
    assert dict(results.tables) == {}
    with pytest.raises(AttributeError, match=rf"tables are none; not complete: scan \({state}\)"):
        _ = results.winners
    with pytest.raises(AttributeError, match=rf"no 'winners': .*{told}"):
        _ = results["scan"].winners
    for ask in (results.winners_of, results.projection, results.patches):
        with pytest.raises(UsageError, match=told):
            ask("conv1", 0)
    with pytest.raises(UsageError, match="no table 'winners'; its tables are none"):
        results.dataset("winners")


def test_a_run_without_a_scan(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metadata = {"job": {"model": "test:net"}}
    Ledger.open(open_storage(str(folder)), {"model": "test:net"}, {}, metadata)
    assert repr(zfscale.open(str(folder))).endswith("complete: nothing; not complete: nothing>")
    columns = (Column("key", "string", ""), Column("drop", "float64", ""))
    table = Table("training", 1, columns, key=("key",), identity=("drop",))
    rows = {"key": np.array(["a"], object), "drop": np.array([0.5])}
    add_analysis(folder, "training", [(table, rows)])
    results = zfscale.open(str(folder))
    assert (results.layers, results.classes) == ({}, None)
    assert results.training["drop"].tolist() == [0.5]
    with pytest.raises(UsageError, match="no layer 'conv1'"):
        results.winners_of("conv1", 0)
    with pytest.raises(UsageError, match=r"the run has no scan; add `scan: \{\}`"):
        results.image("0" * 32)


def test_a_scan_of_no_image_at_all_has_all_its_tables(tmp_path: Path) -> None:
    """Every image was quarantined, by a job from beginning to end."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"no image %d" % number)
    work = {"run": str(tmp_path / "run"), "images": str(tmp_path / "images"), "batch": 4}
    work |= {"model": "zfscale:zfnet-mini", "weights": "seed:0", "device": "cpu"}
    work |= {"analyses": {"scan": {"layers": ["conv1"]}, "deconvolve": {}}}
    resolved = resolve(Job.model_validate(work), lambda: Machine("cpu", 1))
    driver.run(resolved, Serial, lambda event: None)
    results = zfscale.open(work["run"])
    assert list(results.tables) == ["features", "images", "winners"]
    assert all(each.state == State.COMPLETE for each in results.analyses.values())
    assert set(results.winners) == {"run_id", *(column.name for column in WINNERS.columns)}
    assert len(results.winners) == len(results.winners_of("conv1", 0)) == 0
    assert results["scan"].counts == Counts(3, quarantined=3)
    assert results.images["status"].tolist() == ["quarantined"] * 3
    assert results.features["dead"].all()
    assert not results.has_projections("conv1")


def test_damaged_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "run.json").write_text('{"run_id": ')
    with pytest.raises(IntegrityError, match="damaged"):
        zfscale.open(str(run))


def test_damaged_and_missing_arrays_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (described,) = (run / "projections.zarr" / "conv1").glob("zarr.json")
    described.write_text("{}")
    with pytest.raises(
        IntegrityError, match=r"projections\.zarr/conv1: .* deconvolve makes it anew"
    ):
        zfscale.open(str(run)).projection("conv1", 0)
    described.unlink()
    with pytest.raises(IntegrityError, match=r"projections\.zarr/conv1: it is missing or damaged"):
        zfscale.open(str(run))["deconvolve"].array("projections.zarr/conv1")


def test_image_gone_or_changed(tmp_path: Path) -> None:
    results = zfscale.open(str(write_run(tmp_path)))
    first = results.winners_of("conv1", 0).loc[0]
    ref = results.references[first.image_id]
    Path(ref.uri).write_bytes(b"head" + b"x" * (ref.length or 0))
    with pytest.raises(IntegrityError, match="has changed since the scan"):
        results.patches("conv1", 0)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ZfscaleError, match=f"{first.image_id} cannot be read again from {ref.uri}"):
        results.patches("conv1", 0)
    with pytest.raises(UsageError, match="in no table of this run"):
        results.image("0" * 32)


def test_images_of_every_table_can_be_read(tmp_path: Path) -> None:
    """Also one that won nothing: it stands in a table of an analysis, cut in two."""
    run = write_run(tmp_path, (Spec("conv1", features=1),), k=2)
    results = zfscale.open(str(run))
    accepted = results.images[results.images["status"] == "ok"]["id"].tolist()
    first, second = [id_ for id_ in accepted if id_ not in results.references][:2]
    with pytest.raises(UsageError, match="in no table"):
        results.image(first)
    columns = (Column("image_id", "string", ""), Column("value", "float64", ""))
    table = Table("sweep", 1, columns, key=("image_id",), identity=("value",))
    parts = [(table, [{"image_id": id_, "value": 0.5}]) for id_ in (second, first)]
    synthetic_sweeps.publish(run, "sweep", parts)
    again = zfscale.open(str(run))
    assert set(again.references) == {*results.references, first, second}
    assert list(again.references) == [id_ for id_ in accepted if id_ in again.references]
    image = again.images.query("id == @first and status == 'ok'").iloc[0]
    data = Path(image.uri).read_bytes()[int(image.offset) :]
    expected = decode(data, again.preprocessing).pixels.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(again.image(first), expected)


@given(
    box=st.tuples(*[st.integers(-9, 9)] * 2, *[st.integers(1, 12)] * 2),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_cut_equals_the_literal_loop(box: tuple[int, ...], shape: tuple[int, int]) -> None:
    y0, x0, height, width = box
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = crop_patch(pixels, Box(y0, x0, y0 + height, x0 + width), (1, 2, 3))
    for y in range(height):
        for x in range(width):
            inside = 0 <= y0 + y < shape[0] and 0 <= x0 + x < shape[1]
            assert tuple(found[y, x]) == (tuple(pixels[y0 + y, x0 + x]) if inside else (1, 2, 3))
