"""The gallery as files: what is there, what it says, and that hostile names stay text."""

import io
import re
import runpy
from collections import Counter
from pathlib import Path

import badfiles
import fsspec
import numpy as np
import pytest
from gallery_pages import Markup, check_links, check_pictures, check_policy, content
from PIL import Image

from zfscale import collection as sources
from zfscale.engine import driver, resolve
from zfscale.engine.worker import Serial
from zfscale.errors import UsageError, ZfscaleError
from zfscale.gallery import build
from zfscale.gallery.pictures import fit, montage, to_grey
from zfscale.job import Job
from zfscale.runs import results

make = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_run.py"))
write_run, Spec, Picture = make["write_run"], make["Spec"], make["Picture"]

HOSTILE = '"><script>document.title="owned"</script><img src=x onerror=alert(1)>'
LAYERS = (
    Spec("conv1", features=5),
    Spec("scanned", features=3, field=23, size=4, stride=8, projected=False),
    Spec("unknown", features=2, field=None),
    Spec("fc", features=3, field=60, size=1, stride=1),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("gallery"), LAYERS, classes=["cat", "dog", "owl"])
    build(str(run))
    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_every_layer_and_feature_has_its_page_at_a_stable_address(run: Path) -> None:
    gallery = run / "gallery"
    pages = {str(path.relative_to(gallery)) for path in gallery.rglob("*.html")}
    expected = {"index.html"}
    winners = results.Results(str(run)).winners["image_id"].unique()
    expected |= {f"images/{identity}.html" for identity in winners}
    for spec in LAYERS:
        expected.add(f"layers/{spec.name}.html")
        expected |= {f"features/{spec.name}/{n:04d}.html" for n in range(spec.features)}
    assert pages == expected
    check_links(gallery)


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(run: Path) -> None:
    check_policy(run / "gallery")


def test_montages_hold_the_winners_in_order(run: Path) -> None:
    opened = results.Results(str(run))
    folder = run / "gallery" / "pictures" / "conv1"
    patches = np.stack([fit(patch, (55, 55)) for patch in opened.patches("conv1", 2)])
    # 11 x 11 is shown five times as large: JPEG, so nearly the same.
    difference = np.abs(pixels(folder / "0002-patches.jpg") - montage(patches, 9))
    assert difference.mean() < 4
    large = np.stack([to_grey(value) for value in opened.projection("conv1", 2)])
    np.testing.assert_array_equal(pixels(folder / "0002-large.png"), montage(large, 9))


def test_pages_say_what_the_tables_say(run: Path) -> None:
    opened = results.Results(str(run))
    rows = opened.winners_of("conv1", 1)
    markup = Markup(run / "gallery/features/conv1/0001.html")
    for row in rows.itertuples():
        assert row.key in markup.text
        assert f"unit {row.y}, {row.x}" in markup.text
    boxes = [v for tag, v in markup.tags if tag == "rect" and v.get("class") == "box"]
    assert [(int(v["x"]), int(v["y"])) for v in boxes] == list(
        zip(rows["x0"], rows["y0"], strict=True)
    )
    projections = [v for tag, v in markup.tags if tag == "image" and "large" in v["href"]]
    assert len(projections) == 9
    overview = Markup(run / "gallery/index.html").text
    assert "not an image 1" in overview
    assert "66.7 %" not in overview
    assert "83.3 %" in overview  # ranks 0 to 6, then 0 to 4: ten of twelve are not the first
    assert "16.7 %" in overview  # two are 5 or more


def test_odd_layers_show_what_there_is(run: Path) -> None:
    gallery = run / "gallery"
    scanned = Markup(gallery / "layers/scanned.html")
    assert "not deconvolved" in scanned.text
    assert Counter(tag for tag, _ in scanned.tags)["img"] == 3
    assert "receptive field not known" in Markup(gallery / "layers/unknown.html").text
    assert 'class="box"' not in (gallery / "features/unknown/0000.html").read_text()
    assert "fully connected" in Markup(gallery / "layers/fc.html").text
    dead = [v for tag, v in Markup(gallery / "layers/conv1.html").tags if v.get("class") == "dead"]
    assert [v["id"] for v in dead] == ["f3"]
    assert "dead" in Markup(gallery / "features/conv1/0003.html").text


def test_every_image_has_its_size_and_a_text(run: Path) -> None:
    check_pictures(run / "gallery")


def test_a_run_is_no_place_for_a_gallery(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    before = sorted(run.rglob("*"))
    with pytest.raises(UsageError, match=r"--out: .* is a run"):
        build(str(run), f"{run}/")
    assert sorted(run.rglob("*")) == before


def test_building_again_changes_nothing(run: Path) -> None:
    before = content(run / "gallery")
    assert build(str(run)) == f"{run}/gallery/index.html"
    assert content(run / "gallery") == before


def test_each_winning_image_is_read_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[int | None] = Counter()
    fetch = sources.fetch

    def counted(ref, kind):
        read[ref.uri] += 1
        return fetch(ref, kind)

    monkeypatch.setattr(sources, "fetch", counted)
    done: list[tuple[int, int]] = []
    build(str(run), str(tmp_path / "out"), lambda *at: done.append(at))
    assert set(read.values()) == {1}
    assert len(read) == 12
    files = len(content(tmp_path / "out"))
    assert done == [(n, files) for n in range(1, files + 1)]


def test_short_lists_without_labels(tmp_path: Path) -> None:
    pictures = [Picture(f"p{i}", None, make["png"](i)) for i in range(2)]
    run = write_run(tmp_path, (Spec("conv1"),), pictures)
    build(str(run))
    page = Markup(run / "gallery/features/conv1/0000.html")
    assert page.text.count("no label") == 2
    assert "error" not in Markup(run / "gallery/index.html").text
    check_links(run / "gallery")


def test_labels_without_names_are_numbers(tmp_path: Path) -> None:
    """A run of the job itself, over a labelled tar with no class names beside it."""
    writer = badfiles.TarWriter(tmp_path / "images.tar")
    for number in range(6):
        writer.sample(f"{number}.png", make["png"](number), 7 + number % 2)
    writer.tar.close()
    spec = {"run": str(tmp_path / "run"), "model": "zfscale:cifar", "weights": "seed:0"}
    spec |= {"images": str(tmp_path / "images.tar"), "batch": 4}
    spec |= {"analyses": {"scan": {"top_k": 2, "layers": ["conv1"]}}}
    driver.run(resolve.resolve(Job.model_validate(spec)), Serial, lambda event: None)
    assert results.Results(spec["run"]).classes is None
    build(spec["run"])
    page = Markup(tmp_path / "run" / "gallery" / "features" / "conv1" / "0000.html")
    assert "class 7" in page.text or "class 8" in page.text


def test_more_winners_than_a_montage_shows(tmp_path: Path) -> None:
    run = write_run(tmp_path, (Spec("conv1"),), k=11)
    build(str(run))
    page = Markup(run / "gallery/features/conv1/0000.html")
    views = [v["viewbox"] for t, v in page.tags if t == "svg" and "projection" in v["aria-label"]]
    assert views[10] == "22 22 11 11"
    assert Image.open(run / "gallery/pictures/conv1/0000-large.png").size == (44, 44)
    assert Image.open(run / "gallery/pictures/conv1/0000-projections.jpg").size == (165, 165)


def test_hostile_names_stay_text_and_inside(tmp_path: Path) -> None:
    names = (HOSTILE, "../../../escape", "conv1", "CONV1", "..")
    pictures = [Picture(f"../../{HOSTILE}{i}", i % 3, make["png"](i)) for i in range(3)]
    classes = [HOSTILE, "</script><!--", "\u2028\ud800'; alert(1)//"]
    layers = tuple(Spec(name, projected=False) for name in names)
    run = write_run(tmp_path, layers, pictures, classes, model=HOSTILE)
    before = {path for path in tmp_path.rglob("*") if run / "gallery" not in path.parents}
    build(str(run))
    after = {path for path in tmp_path.rglob("*") if run / "gallery" not in path.parents}
    assert after - before == {run / "gallery"}
    plain = {"a", "body", "img", "script", "svg", "image", "rect", "title"}
    for page in (run / "gallery").rglob("*.html"):
        markup = Markup(page)
        assert sum(tag == "script" for tag, _ in markup.tags) == 2
        assert not [v for tag, v in markup.tags if tag in plain and "onerror" in v]
    assert HOSTILE in Markup(run / "gallery/index.html").text
    data = (run / "gallery/assets/features.js").read_text()
    assert re.fullmatch(r"globalThis\.zfscale=\{[^<>&]*\};\n", data)
    check_links(run / "gallery")


def test_a_gallery_at_a_url(run: Path) -> None:
    address = build(str(run), "memory://stored/gallery/")
    assert address == "memory://stored/gallery/index.html"
    memory = fsspec.filesystem("memory")
    stored = memory.cat_file("/stored/gallery/pictures/conv1/0000-large.png")
    assert Image.open(io.BytesIO(stored)).size == (33, 33)
    assert len(memory.find("/stored/gallery")) == len(content(run / "gallery"))


def test_an_image_that_is_gone_stops_the_build(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (tmp_path / "images" / "0005.bin").unlink()
    with pytest.raises(ZfscaleError, match=r"cannot be read again from .*0005.bin"):
        build(str(run))
    assert not (run / "gallery" / "index.html").exists()
