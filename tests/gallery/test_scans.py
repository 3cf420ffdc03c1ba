"""Several scans in one gallery: each with its own layers, projections and addresses."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from gallery_pages import Markup, check_links, check_pictures, check_policy, content
from PIL import Image

from zfscale.gallery import build
from zfscale.gallery.pictures import montage, to_grey
from zfscale.gallery.site import load_site
from zfscale.runs.results import Results

make = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_run.py"))
sweeps = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_sweeps.py"))
write_run, add_scan, Spec = make["write_run"], make["add_scan"], make["Spec"]

LAYERS = (Spec("conv1"), Spec("conv2", field=23, size=4, stride=8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second scan has one layer less, and an occlusion works on it."""
    run = write_run(tmp_path_factory.mktemp("scans"), LAYERS, classes=["cat", "dog", "owl"])
    add_scan(run, LAYERS[1:], name="deep", deconvolve="deep-projections", k=4)
    sweeps["occlusion"](run, count=2)
    sweeps["occlusion"](run, count=2, name="deep-occlusion", scan="deep")
    sweeps["occlusion"](run, count=2, name="elsewhere", layer="conv1", scan="deep")
    build(str(run))
    return run


def test_each_scan_has_its_pages_and_the_first_keeps_its_addresses(run: Path) -> None:
    gallery = run / "gallery"
    pages = {str(path.relative_to(gallery)) for path in gallery.rglob("*.html")}
    expected = {f"layers/{name}.html" for name in ("conv1", "conv2")} | {"deep/layers/conv2.html"}
    for folder in ("features/conv1", "features/conv2", "deep/features/conv2"):
        expected |= {f"{folder}/{number:04d}.html" for number in range(4)}
    assert {page for page in pages if "layers/" in page or "features/" in page} == expected
    check_links(gallery)
    check_policy(gallery)
    check_pictures(gallery)


def test_a_scan_alone_has_the_same_files_as_beside_another(run: Path, tmp_path: Path) -> None:
    alone = write_run(tmp_path, LAYERS, classes=["cat", "dog", "owl"])
    build(str(alone))
    theirs = content(run / "gallery")
    for path, data in content(alone / "gallery").items():
        if path.startswith("pictures/"):
            assert theirs[path] == data


def test_projections_and_winners_are_those_of_the_scan(run: Path) -> None:
    results = Results(str(run))
    for name, folder, projections in (
        ("scan", "pictures", "deconvolve"),
        ("deep", "deep/pictures", "deep-projections"),
    ):
        winners = results[name].winners
        keys = winners[(winners["layer"] == "conv2") & (winners["feature"] == 1)]["key"]
        page = folder.replace("pictures", "features") + "/conv2/0001.html"
        text = Markup(run / "gallery" / page).text
        assert sorted(key for key in results.images["key"] if key in text) == sorted(keys)
        stored = results[projections].array("projections.zarr/conv2")[1]
        large = montage(np.stack([to_grey(value) for value in stored[: len(keys)]]), len(keys))
        picture = Image.open(run / "gallery" / folder / "conv2" / "0001-large.png")
        np.testing.assert_array_equal(np.asarray(picture), large)


def test_an_analysis_links_to_the_scan_that_it_works_on(run: Path) -> None:
    results = Results(str(run))
    for name, prefix in (("occlusion", "../"), ("deep-occlusion", "../deep/")):
        identity = results[name].images["image_id"][0]
        links = Markup(run / "gallery" / name / f"{identity}.html").links()
        feature = results[name].images["feature"][0]
        assert f"{prefix}features/conv2/{feature:04d}.html" in links
    identity = results["elsewhere"].images["image_id"][0]
    links = Markup(run / "gallery" / "elsewhere" / f"{identity}.html").links()
    assert not [link for link in links if "features/" in link]  # conv1 is in the other scan alone


def test_the_overview_and_the_search_list_every_scan(run: Path) -> None:
    first = Markup(run / "gallery" / "index.html")
    assert {"layers/conv1.html", "layers/conv2.html", "deep/layers/conv2.html"} <= {*first.links()}
    assert {"scan-scan", "scan-deep"} <= {values.get("id") for _, values in first.tags}
    script = (run / "gallery" / "assets" / "features.js").read_text()
    data = json.loads(script.removeprefix("globalThis.zfscale=").rstrip(";\n"))
    assert [(layer["scan"], layer["folder"], layer["name"]) for layer in data["layers"]] == [
        ("scan", "", "conv1"),
        ("scan", "", "conv2"),
        ("deep", "deep/", "conv2"),
    ]
    assert {"name": "deep", "address": "index.html#scan-deep"} in data["chapters"]


def test_a_scan_that_is_not_called_scan_can_be_the_only_one(tmp_path: Path) -> None:
    run = write_run(tmp_path, LAYERS)
    add_scan(run, LAYERS[1:], name="deep", deconvolve=None)
    make["add_analysis"](run, "scan", needs={"index": "index"}, state="failed", error="no disk")
    site = load_site(Results(str(run)))
    assert [(scan.name, scan.folder) for scan in site.scans] == [("deep", "deep/")]
    build(str(run))
    assert (run / "gallery" / "deep" / "layers" / "conv2.html").is_file()
    assert not (run / "gallery" / "layers").exists()
    assert "not deconvolved" in Markup(run / "gallery/deep/layers/conv2.html").text
    check_links(run / "gallery")


def test_no_analysis_takes_an_address_of_the_gallery(tmp_path: Path) -> None:
    run = write_run(tmp_path, LAYERS)
    add_scan(run, LAYERS, name="images", deconvolve=None)
    sweeps["occlusion"](run, count=1, name="layers")
    build(str(run))
    assert (run / "gallery" / "images-2" / "layers" / "conv1.html").is_file()
    assert (run / "gallery" / "layers-2" / "index.html").is_file()
    check_links(run / "gallery")
