"""The chapters on occlusion, invariance and correspondence, as files."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gallery_pages import Markup, check_links, check_pictures, check_policy, content
from PIL import Image

from zfscale import collection as sources
from zfscale.gallery import build, curves
from zfscale.gallery.build import Gallery
from zfscale.gallery.charts import HEIGHT, WIDTH
from zfscale.gallery.colours import CLASSES, on_scale, rgb
from zfscale.gallery.pages import correspondence, occlusion
from zfscale.runs.ledger import Ledger
from zfscale.runs.manifest import State
from zfscale.runs.results import Results
from zfscale.storage import open_storage

make = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_run.py"))
sweeps = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_sweeps.py"))
write_run, Spec, Picture = make["write_run"], make["Spec"], make["Picture"]

HOSTILE = '"><script>document.title="owned"</script><img src=x onerror=alert(1)>'
NAMES = ("invariance", "occlusion", "correspondence")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few winners, so that most images stand in the tables of the analyses alone."""
    folder = tmp_path_factory.mktemp("chapters")
    layers = (Spec("conv1", features=1), Spec("conv2", field=23, size=4, stride=8))
    pictures = [Picture(f"picture-{i:02d}", i % 3, make["png"](i)) for i in range(20)]
    run = write_run(folder, layers, pictures, ["cat", "dog", "owl"], k=5)
    for name in NAMES:
        sweeps[name](run)
    build(str(run))
    return run


def page_of(run: Path, number: int) -> Path:
    """The page of one of the occluded images, in the order of their table."""
    identity = Results(str(run)).occlusion_images["image_id"][number]
    return run / "gallery" / "occlusion" / f"{identity}.html"


def readout(page: Path) -> dict:
    text = page.with_suffix(".js").read_text()
    (found,) = re.fullmatch(r"globalThis\.zfscaleMaps=(\{[^<>&]*\});\n", text).groups()
    return json.loads(found)


def test_each_chapter_has_its_pages(run: Path) -> None:
    gallery = run / "gallery"
    pages = {str(path.relative_to(gallery)) for path in gallery.rglob("*.html")}
    identities = Results(str(run)).occlusion_images["image_id"]
    expected = {f"occlusion/{identity}.html" for identity in identities}
    expected |= {"invariance.html", "occlusion/index.html", "correspondence.html"}
    others = ("features/", "layers/", "images/", "index.html")
    assert {page for page in pages if not page.startswith(others)} == expected


def test_the_pages_keep_to_what_all_pages_keep_to(run: Path) -> None:
    check_links(run / "gallery")
    check_policy(run / "gallery")
    check_pictures(run / "gallery")


def test_the_first_page_and_the_search_lead_to_the_chapters_a_run_has(tmp_path: Path) -> None:
    addresses = {
        "occlusion": "occlusion/index.html",
        "invariance": "invariance.html",
        "correspondence": "correspondence.html",
    }
    run = write_run(tmp_path)
    had: list[str] = []
    for name in (None, "occlusion", "invariance", "correspondence"):
        if name is not None:
            sweeps[name](run)
            had.append(name)
        build(str(run))
        links = Markup(run / "gallery" / "index.html").links()
        for chapter, address in addresses.items():
            assert (address in links) == (chapter in had)
            assert (run / "gallery" / address).exists() == (chapter in had)
        search = (run / "gallery" / "assets" / "features.js").read_text()
        found = json.loads(search.removeprefix("globalThis.zfscale=").rstrip(";\n"))["chapters"]
        wanted = [name for name in addresses if name in had]  # in the order of the run
        assert found == [{"name": name, "address": addresses[name]} for name in wanted]


def test_every_image_is_read_once_for_all_its_uses(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(str(run))
    read: Counter[str] = Counter()
    fetch = sources.fetch

    def counted(ref, kind):
        read[ref.uri] += 1
        return fetch(ref, kind)

    monkeypatch.setattr(sources, "fetch", counted)
    done: list[tuple[int, int]] = []
    build(str(run), str(tmp_path / "out"), lambda *at: done.append(at))
    assert set(read.values()) == {1}
    files = content(tmp_path / "out")
    names = [path.removeprefix("images/") for path in files if path.startswith("images/")]
    shown = {name.split(".")[0] for name in names}
    assert len(names) == 2 * len(shown)  # a picture and a page
    assert shown == set(results.references)
    assert len(shown) > results.winners["image_id"].nunique()
    assert done == [(n, len(files)) for n in range(1, len(files) + 1)]


def test_building_again_changes_nothing(run: Path) -> None:
    before = content(run / "gallery")
    build(str(run))
    assert content(run / "gallery") == before


def test_maps_are_pictures_of_the_table(run: Path) -> None:
    results = Results(str(run))
    image = results.occlusion_images.iloc[1]
    rows = results.occlusion[results.occlusion["image_id"] == image.image_id]
    page = page_of(run, 1)
    data = readout(page)
    shown = {
        what: np.asarray(Image.open(page.with_name(f"{image.image_id}-{what}.png")).convert("RGB"))
        for what in ("activation", "probability", "classes", "loss")
    }
    assert {pixels.shape for pixels in shown.values()} == {(7, 6, 3)}
    for row in rows.itertuples():
        at = row.y // 4, row.x // 5
        low, high = rows["activation"].min(), image.total
        assert tuple(shown["activation"][at]) == tuple(
            on_scale(np.float64(row.activation), low, high)
        )
        chance = np.float64(row.probability)
        low, high = float(rows["probability"].min()), float(image.probability)
        assert tuple(shown["probability"][at]) == tuple(on_scale(chance, low, high))
        assert tuple(shown["loss"][at]) == tuple(on_scale(chance, 0.0, high))
        index = int(row.predicted != image.target)
        assert tuple(shown["classes"][at]) == rgb(CLASSES[index])
        place = at[0] * 6 + at[1]
        assert data["values"]["class"][place] == index
        assert float(data["values"]["probability"][place]) == pytest.approx(chance, abs=0.01)
        assert float(data["values"]["activation"][place]) == pytest.approx(row.activation, abs=1)


def test_the_strongest_unit_is_shown_where_it_lies_in_the_image(run: Path) -> None:
    identity = Results(str(run)).occlusion_images["image_id"][1]
    page = page_of(run, 1)
    (shown,) = [v for v in Markup(page).all("image") if v["href"].endswith("-projection.png")]
    assert (shown["x"], shown["y"], shown["width"], shown["height"]) == ("13", "5", "19", "23")
    pixels = np.asarray(Image.open(page.with_name(f"{identity}-projection.png")))
    assert pixels.shape == (23, 19, 3)
    assert (pixels[0] == 1).all()
    assert (pixels[11] == 128).all()
    assert (pixels[22] == 255).all()


def test_a_page_of_an_image_says_where_the_evidence_lies(run: Path) -> None:
    results = Results(str(run))
    image = results.occlusion_images.iloc[0]
    rows = results.occlusion[results.occlusion["image_id"] == image.image_id]
    lowest = rows.loc[rows["probability"].idxmin()]
    page = Markup(page_of(run, 0))
    occluder = [v for v in page.all("rect") if v.get("fill", "").startswith("rgb")]
    assert [(v["x"], v["y"], v["width"], v["height"], v["fill"]) for v in occluder] == [
        (str(lowest.x), str(lowest.y), "10", "8", "rgb(120,110,100)")
    ]
    boxes = {(v["x"], v["y"], v["width"], v["height"]) for v in page.all("rect", "box")}
    assert ("13", "5", "19", "23") in boxes  # to the border of the image, 32 pixels
    # Each position of a map lies about the centre of the occluder.
    cells = page.all("image", "cells")
    assert {(v["x"], v["y"], v["width"], v["height"]) for v in cells} == {
        ("2.5", "2.0", "30", "28")
    }
    assert len(cells) == 3
    for text in ("unoccluded 0.90", "probability of dog 0.90 → 0.10", "7 × 6 positions"):  # noqa: RUF001
        assert text in re.sub(r"\s+", " ", page.text)
    legend = page.text.partition("Most probable class")[2]
    assert legend.index("dog") < legend.index("owl")


def test_the_feature_that_was_followed_is_shown_with_this_image_framed(run: Path) -> None:
    results = Results(str(run))
    framed = 0
    for number, image in enumerate(results.occlusion_images.itertuples()):
        page = Markup(page_of(run, number))
        pictures = {v["src"] for v in page.all("img")}
        stem = f"../pictures/conv2/{image.feature:04d}"
        assert {f"{stem}-projections.png", f"{stem}-patches.png"} <= {
            re.sub(r"\.jpg$", ".png", address) for address in pictures
        }
        assert f"../features/conv2/{image.feature:04d}.html" in page.links()
        winners = results.winners_of("conv2", image.feature)["image_id"].tolist()
        frames = [v for v in page.all("svg") if v.get("aria-label") == "this image is framed"]
        assert len(frames) == 2 * (image.image_id in winners)
        assert ("this image is not among them" in page.text) == (image.image_id not in winners)
        framed += image.image_id in winners
    assert 0 < framed < 5


def test_images_are_chained(run: Path) -> None:
    identities = Results(str(run)).occlusion_images["image_id"].tolist()
    for number, identity in enumerate(identities):
        links = {v["rel"]: v["href"] for v in Markup(page_of(run, number)).all("a") if "rel" in v}
        assert links["up"] == f"../occlusion/index.html#i{identity}"
        around = {"prev": number - 1, "next": number + 1}
        for name, other in around.items():
            wanted = 0 <= other < len(identities)
            assert (name in links) == wanted
            assert not wanted or links[name] == f"../occlusion/{identities[other]}.html"


def test_the_index_has_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occlusion, "PER_PAGE", 3)
    run = write_run(tmp_path)
    sweeps["occlusion"](run, count=7)
    done: list[tuple[int, int]] = []
    build(str(run), progress=lambda *at: done.append(at))
    assert done[-1][0] == done[-1][1]
    check_links(run / "gallery")
    folder = run / "gallery" / "occlusion"
    cells = {
        name: len(Markup(folder / name).all("a", "cell"))
        for name in ("index.html", "index-2.html", "index-3.html")
    }
    assert cells == {"index.html": 3, "index-2.html": 3, "index-3.html": 1}
    middle = {v.get("id"): v["href"] for v in Markup(folder / "index-2.html").all("a")}
    assert middle["previous-layer"] == "../occlusion/index.html"
    assert middle["next-layer"] == "../occlusion/index-3.html"
    assert "index-2.html#i" in page_of(run, 4).read_text()


def test_occlusion_of_a_network_without_classes(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    sweeps["occlusion"](run, classes=None, layer="elsewhere", extra=(7,), projected=False)
    done: list[tuple[int, int]] = []
    build(str(run), progress=lambda *at: done.append(at))
    assert done[-1][0] == done[-1][1]
    check_links(run / "gallery")
    check_pictures(run / "gallery")
    page = page_of(run, 0)
    text = Markup(page).text
    assert "Probability" not in text
    assert "Most probable" not in text
    assert "Total activation of elsewhere 7" in re.sub(r"\s+", " ", text)
    assert set(readout(page)["values"]) == {"activation", "activation-7"}
    assert "total activation of the strongest map" in re.sub(
        r"\s+", " ", Markup(page.with_name("index.html")).text
    )


def test_the_colour_of_the_occluder_is_that_of_the_job(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    sweeps["occlusion"](run, count=1, value=[9, 8, 7])
    build(str(run))
    assert "rgb(9,8,7)" in page_of(run, 0).read_text()


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_charts_draw_the_table(run: Path) -> None:
    frame = Results(str(run)).invariance
    page = Markup(run / "gallery" / "invariance.html")
    charts = [v["aria-label"] for v in page.all("svg", "chart")]
    measures = ["conv1: normalised distance", "conv2: normalised distance"]
    units = ["pixels down", "factor", "degrees anticlockwise"]
    assert charts[:9] == [
        f"{what}, by {unit}" for unit in units for what in (*measures, "probability of the class")
    ]
    assert charts[9:] == [
        f"{layer}: distance, by {u}" for u in units for layer in ("conv1", "conv2")
    ]
    # The mean is drawn twice, once as its own halo, and once in the key of the page.
    means = [v["d"] for v in page.all("path", "mean") if "under" not in v["class"]][1:]
    single = [v for v in page.all("path", "curve") if "data-image" in v]
    assert len(means) == len(charts) == 15
    assert len(single) == 15 * 5
    vertical = frame[(frame["transform"] == "vertical") & (frame["layer"] == "conv1")]
    # The axis is that of all normalised distances: up to 5 * 270 / 200 = 6.75, so to 8.
    means_of = vertical.groupby("amount")["normalised"].mean()
    wanted = [
        (WIDTH * at / 2, HEIGHT * (1 - means_of[amount] / 8))
        for at, amount in enumerate((-4, 0, 4))
    ]
    assert points(means[0]) == [pytest.approx(point, abs=0.06) for point in wanted]
    first = vertical[vertical["image_id"] == frame["image_id"][0]].sort_values("amount")
    heights = HEIGHT * (1 - first["normalised"] / 8)
    assert [y for _, y in points(single[0]["d"])] == pytest.approx(heights.tolist(), abs=0.06)
    # The other layer has the same axis, for its distances have the same unit.
    other = frame[(frame["transform"] == "vertical") & (frame["layer"] == "conv2")]
    heights = HEIGHT * (1 - other.groupby("amount")["normalised"].mean() / 8)
    assert [y for _, y in points(means[1])] == pytest.approx(heights.tolist(), abs=0.06)
    chance = frame.groupby("amount")["probability"].mean()[0.0]
    assert points(means[2])[1][1] == pytest.approx(HEIGHT * (1 - chance), abs=0.06)


def test_more_images_than_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "DRAWN", 2)
    run = write_run(tmp_path, (Spec("conv1", features=1),), k=1, dead=None)
    sweeps["invariance"](run, count=4, classes=None)
    build(str(run))
    page = Markup(run / "gallery" / "invariance.html")
    text = re.sub(r"\s+", " ", page.text)
    assert "mean of 4 images" in text
    assert "the first 2 of them" in text
    assert "Probability" not in text
    assert len(page.all("img")) == 2
    winner = Results(str(run)).winners["image_id"].unique()
    drawn = Results(str(run)).invariance["image_id"].unique()[:2]
    assert len(list((run / "gallery" / "images").glob("*.png"))) == len({*winner, *drawn})


def test_the_table_says_what_was_found(run: Path) -> None:
    frame = Results(str(run)).correspondence
    text = (run / "gallery" / "correspondence.html").read_text()
    body = text.partition("<tbody>")[2].partition("</tbody>")[0]
    lines = [re.sub(r"<[^>]*>", " ", line).split() for line in body.split("<tr")[1:]]
    assert [line[1] for line in lines] == ["left", "nose", "random"]
    for part, line in zip(("left eye", "nose"), lines, strict=False):
        numbers = [float(word) for word in line if re.fullmatch(r"[\d.]+", word)]
        wanted = [5.0, 10.0]
        for layer in ("conv1", "conv2"):
            rows = frame[(frame["layer"] == layer) & (frame["part"] == part)].sort_values("random")
            for row in rows.itertuples():
                wanted += [round(row.mean, 3), round(row.std, 3)]
            wanted.append(round(rows["chance"].iloc[0], 3))
        assert numbers == pytest.approx(wanted)
    pooled = [word for word in lines[2] if re.fullmatch(r"[\d.]+|–", word)]  # noqa: RUF001
    rows = frame[frame["part"] == "random"].set_index("layer")["mean"]
    assert pooled[2:4] == ["–", f"{rows['conv1']:.3f}"]  # noqa: RUF001


def test_intervals_lie_at_the_means(run: Path) -> None:
    frame = Results(str(run)).correspondence
    page = Markup(run / "gallery" / "correspondence.html")
    found = [float(v["cx"]) for v in page.all("circle")]
    end = 0.3  # of the axis: the next tick after chance, 0.25
    wanted = []
    for layer in ("conv1", "conv2"):
        for part in ("left eye", "nose", "random"):
            rows = frame[(frame["layer"] == layer) & (frame["part"] == part)]
            wanted += rows.sort_values("random", ascending=False)["mean"].tolist()
    assert [x / WIDTH * end for x in found] == pytest.approx(wanted, abs=1e-3)


def test_covered_images_show_the_part_and_the_first_random_box(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correspondence, "SHOWN", 3)
    build(str(run), str(tmp_path / "out"))
    page = Markup(tmp_path / "out" / "correspondence.html")
    filled = [v for v in page.all("rect") if v.get("fill") == "rgb(120,110,100)"]
    boxes = [tuple(int(v[n]) for n in ("x", "y", "width", "height")) for v in filled]
    frame = Results(str(run)).correspondence_images
    expected = []
    for part in ("left eye", "nose"):
        rows = frame[frame["part"] == part]
        for identity in rows["image_id"].unique()[:3]:
            own = rows[rows["image_id"] == identity]
            expected.append(own[own["draw"].isna()].iloc[0])
            expected.append(own[own["draw"] == 0].iloc[0])
    assert boxes == [(r.x0, r.y0, r.x1 - r.x0, r.y1 - r.y0) for r in expected]
    assert len(boxes) == 12


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    pictures = [Picture(f"{HOSTILE}{i}", i % 3, make["png"](i)) for i in range(5)]
    classes = [HOSTILE, "</script><!--", "\u2028\ud800'; alert(1)//"]
    run = write_run(tmp_path, (Spec(HOSTILE, projected=False),), pictures, classes)
    sweeps["occlusion"](run, layer=HOSTILE)
    sweeps["invariance"](run, layers=(HOSTILE, "../escape"))
    sweeps["correspondence"](run, parts=(HOSTILE, "</table>"))
    before = {path for path in tmp_path.rglob("*") if run / "gallery" not in path.parents}
    build(str(run))
    after = {path for path in tmp_path.rglob("*") if run / "gallery" not in path.parents}
    assert after - before == {run / "gallery"}
    check_links(run / "gallery")
    check_policy(run / "gallery")
    for page in (run / "gallery").rglob("*.html"):
        markup = Markup(page)
        scripts = [values["src"].rpartition("/")[2] for values in markup.all("script")]
        assert len(scripts) == len(set(scripts))
        assert not [v for _, v in markup.tags if "onerror" in v]
        assert not [v for v in markup.all("img") if v["src"] == "x"]
    assert HOSTILE in Markup(run / "gallery" / "correspondence.html").text
    assert HOSTILE in Markup(run / "gallery" / "invariance.html").text
    assert readout(page_of(run, 0))["classes"][0] == classes[1]


def test_tables_without_rows_make_no_chapter(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for name in NAMES:
        sweeps[name](run, count=0)
    chapters = [name for name, _ in Gallery(Results(str(run))).chapters]
    assert chapters == ["correspondence"]  # it has its means
    done: list[tuple[int, int]] = []
    build(str(run), progress=lambda *at: done.append(at))
    assert done[-1][0] == done[-1][1]
    check_links(run / "gallery")


def test_analyses_of_one_kind_stand_side_by_side(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    sweeps["occlusion"](run, count=2)
    sweeps["occlusion"](run, count=3, name="small-occluder", value=[9, 8, 7])
    done: list[tuple[int, int]] = []
    build(str(run), progress=lambda *at: done.append(at))
    assert done[-1][0] == done[-1][1]
    gallery = run / "gallery"
    for name, images in (("occlusion", 2), ("small-occluder", 3)):
        ids = Results(str(run))[name].images["image_id"]
        assert {path.stem for path in (gallery / name).glob("*.html")} == {*ids, "index"}
        assert len(ids) == images
        pages = [path.read_text() for path in (gallery / name).glob("*.html")]
        assert any("rgb(9,8,7)" in page for page in pages) == (name == "small-occluder")
    first = (gallery / "index.html").read_text()
    assert "<bdi>Occlusion: small-occluder</bdi></a>" in first
    assert "<bdi>Occlusion</bdi></a>" in first
    check_links(gallery)


def test_the_first_page_says_what_is_not_complete(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    sweeps["occlusion"](run, count=1)
    add = make["add_analysis"]
    needs = {"scan": "scan"}
    add(run, "invariance", needs=needs, state="failed", error=HOSTILE)
    add(run, "correspondence", needs=needs, state="running")
    build(str(run))
    first = (run / "gallery" / "index.html").read_text()
    assert "<b>invariance</b> is not complete (failed): &#34;&gt;&lt;script&gt;" in first
    assert "<b>correspondence</b> is not complete (running)" in first
    assert (run / "gallery" / "occlusion" / "index.html").is_file()
    assert not (run / "gallery" / "invariance.html").exists()
    check_policy(run / "gallery")


def test_a_run_without_a_complete_scan_has_a_first_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, state="failed", error="no disk")
    build(str(run))
    assert (
        "<b>scan</b> is not complete (failed): no disk"
        in (run / "gallery" / "index.html").read_text()
    )


def test_a_job_that_failed_over_readable_results_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    sweeps["occlusion"](run, count=1)
    Ledger.take_over(open_storage(str(run))).end("occlusion", State.FAILED, 1.0, "no disk")
    build(str(run))
    assert (run / "gallery" / "occlusion" / "index.html").is_file()
    first = (run / "gallery" / "index.html").read_text()
    assert "<b>occlusion</b> failed, and older results of it are shown: no disk" in first
