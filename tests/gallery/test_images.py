"""The pages of images: what an image is, what it won, and what other analyses say of it."""

import re
import runpy
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from gallery_pages import Markup, check_links, check_pictures, check_policy

from zfscale.gallery import build
from zfscale.runs.analysis_results import AnalysisResults
from zfscale.runs.results import Results

make = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_run.py"))
sweeps = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_sweeps.py"))
write_run, Spec, Picture = make["write_run"], make["Spec"], make["Picture"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few winners, so that some images are shown by other analyses alone."""
    layers = (Spec("conv1", features=1), Spec("conv2", field=23, size=4, stride=8))
    pictures = [Picture(f"picture-{i:02d}", i % 3, make["png"](i)) for i in range(40)]
    folder = tmp_path_factory.mktemp("images")
    run = write_run(folder, layers, pictures, ["cat", "dog", "owl"], k=3)
    make["add_scan"](run, layers[:1], name="deep", deconvolve=None, k=3)
    for name in ("occlusion", "invariance", "correspondence"):
        sweeps[name](run)
    build(str(run))
    return run


def words(markup: Markup) -> str:
    return re.sub(r"\s+", " ", markup.text)


def test_every_image_that_is_shown_whole_has_a_page(run: Path) -> None:
    pictures = {path.stem for path in (run / "gallery" / "images").glob("*.png")}
    pages = {path.stem for path in (run / "gallery" / "images").glob("*.html")}
    assert pages == pictures == {*Results(str(run)).references}
    check_links(run / "gallery")
    check_policy(run / "gallery")
    check_pictures(run / "gallery")


def test_a_page_says_what_the_tables_say(run: Path) -> None:
    """Literal: a loop over all rows of the winners of both scans."""
    results = Results(str(run))
    wins = 0
    for row in results.images[results.images["status"] == "ok"].itertuples():
        page = run / "gallery" / "images" / f"{row.id}.html"
        if not page.exists():
            continue
        markup = Markup(page)
        text = words(markup)
        assert row.key in text
        assert f"<h1><bdi>{['cat', 'dog', 'owl'][int(row.label)]}</bdi>" in page.read_text()
        assert f"predicted cat, probability {row.probability:.2f}" in text
        expected = []
        for scan, folder in (("scan", ""), ("deep", "deep/")):
            winners = results[scan].winners
            for layer in results[scan].layers:
                own = winners[(winners["image_id"] == row.id) & (winners["layer"] == layer)]
                for win in own.sort_values(["rank", "feature"]).itertuples():
                    address = f"../{folder}features/{layer}/{win.feature:04d}.html"
                    expected.append((address, win.rank + 1, f"{win.score:.3g}"))
        section = (
            page.read_text().partition('<div class="wins">')[2].partition("</section>\n</div>")[0]
        )
        shown = re.findall(r'<li><a href="([^"]+)">.*?rank (\d+)<br>([\d.]+)<', section, re.DOTALL)
        assert [(address, int(rank), score) for address, rank, score in shown] == expected
        wins += len(expected)
    assert wins == len(results.winners) + len(results["deep"].winners)


def test_images_are_chained_in_the_order_of_the_files(run: Path) -> None:
    order = list(Results(str(run)).references)
    for number, identity in enumerate(order):
        page = Markup(run / "gallery" / "images" / f"{identity}.html")
        links = {v["rel"]: v["href"] for v in page.all("a") if "rel" in v}
        assert links.get("prev") == (f"../images/{order[number - 1]}.html" if number else None)
        after = order[number + 1 :][:1]
        assert links.get("next") == (f"../images/{after[0]}.html" if after else None)


def test_pages_of_features_lead_to_the_images(run: Path) -> None:
    winners = Results(str(run)).winners_of("conv2", 1)["image_id"]
    links = Markup(run / "gallery" / "features" / "conv2" / "0001.html").links()
    assert {f"../../images/{identity}.html" for identity in winners} <= {*links}


def test_other_analyses_have_a_panel_where_the_image_takes_part(run: Path) -> None:
    results = Results(str(run))
    tables = {"Occlusion": "occlusion_images", "Invariance": "invariance"}
    tables["Correspondence"] = "correspondence_images"
    taking_part = {
        title: set(getattr(results, table)["image_id"]) for title, table in tables.items()
    }
    assert set(results.references) - taking_part["Occlusion"]
    for identity in results.references:
        page = Markup(run / "gallery" / "images" / f"{identity}.html")
        for title, ids in taking_part.items():
            assert (title in page.text) == (identity in ids)
        inside = identity in taking_part["Occlusion"]
        assert (f"../occlusion/{identity}.html" in page.links()) == inside
        losses = [v for v in page.all("image") if v["href"].endswith(f"{identity}-loss.png")]
        assert len(losses) == inside


def test_a_feature_shows_the_images_in_which_its_map_is_the_strongest(run: Path) -> None:
    occluded = Results(str(run)).occlusion_images
    for feature in range(4):
        links = Markup(run / "gallery" / "features" / "conv2" / f"{feature:04d}.html").links()
        own = occluded[occluded["feature"] == feature]["image_id"]
        shown = {x for x in links if re.search(r"/occlusion/[0-9a-f]{32}\.html", x)}
        assert shown == {f"../../occlusion/{identity}.html" for identity in own}


def test_images_are_looked_up_by_id_in_one_pass(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held of the table `images` are the rows of those that are shown."""
    passes: list[int] = []
    dataset = AnalysisResults.dataset

    class Counted:
        """Looked up by id once; else counted in batches."""

        def __init__(self, inner: ds.Dataset) -> None:
            self.to_batches = inner.to_batches
            self.schema = inner.schema
            self.inner = inner

        def to_table(self, **options) -> pa.Table:
            rows = self.inner.to_table(**options)
            passes.append(len(rows))
            return rows

    def counted(analysis: AnalysisResults, name: str | None = None):
        inner = dataset(analysis, name)
        return Counted(inner) if name == "images" else inner

    monkeypatch.setattr(AnalysisResults, "dataset", counted)
    build(str(run), str(tmp_path / "out"))
    shown = len(list((tmp_path / "out" / "images").glob("*.html")))
    assert passes == [shown]
    assert shown < Results(str(run))["scan"].counts.ok


def test_an_image_without_label_and_classes(tmp_path: Path) -> None:
    pictures = [Picture(f"p{i}", None, make["png"](i)) for i in range(3)]
    run = write_run(tmp_path, (Spec("conv1", field=None),), pictures)
    build(str(run))
    for page in (run / "gallery" / "images").glob("*.html"):
        text = words(Markup(page))
        assert "no label" in text
        assert "predicted class 0" in text
    check_links(run / "gallery")
