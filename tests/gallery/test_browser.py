"""The gallery in a real browser, opened from the disk."""

import os
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from zfscale.gallery import build

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

make = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_run.py"))
sweeps = runpy.run_path(str(Path(__file__).parents[1] / "synthetic_sweeps.py"))
HOSTILE = '"><img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-sync")

# Pictures in an SVG have no naturalWidth: their addresses are loaded once more as images.
BROKEN = """async () => {
  const addresses = new Set();
  for (const image of document.querySelectorAll("img")) addresses.add(image.src);
  for (const image of document.querySelectorAll("svg image")) addresses.add(image.href.baseVal);
  const broken = [];
  for (const address of addresses) {
    const image = new Image();
    image.src = address;
    await image.decode().catch(() => null);
    if (!(image.naturalWidth > 0)) broken.push(address);
  }
  return [addresses.size, broken];
}"""


@pytest.fixture(scope="module")
def chromium() -> str:
    given = os.environ.get("ZFSCALE_CHROMIUM")
    found = given or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on the path; set ZFSCALE_CHROMIUM to one")
    return found


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> str:
    layers = (make["Spec"]("conv1", features=6), make["Spec"]("conv5", features=15, field=23))
    pictures = [make["Picture"](f"{HOSTILE}{i}", i % 3, make["png"](i)) for i in range(12)]
    classes = ["cat", "dog", HOSTILE]
    run = make["write_run"](tmp_path_factory.mktemp("browser"), layers, pictures, classes)
    return "file://" + build(str(run)).removesuffix("/index.html")


@pytest.fixture(scope="module")
def chapters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A gallery with all chapters; few winners, so that most images are shown by these alone."""
    classes = ["cat", "dog", HOSTILE]
    run = make["write_run"](tmp_path_factory.mktemp("sweeps"), classes=classes, k=2)
    layer = make["Spec"]("conv2", field=23, size=4, stride=8)
    make["add_scan"](run, (layer,), name="deep", deconvolve="deep-projections", k=2)
    sweeps["occlusion"](run, extra=(1,))
    sweeps["invariance"](run)
    sweeps["correspondence"](run)
    return "file://" + build(str(run)).removesuffix("/index.html")


def occluded(page: "api.Page", chapters: str) -> list[str]:
    """The pages of the occluded images, from their index."""
    page.goto(f"{chapters}/occlusion/index.html")
    links = page.locator("a.cell").evaluate_all("cells => cells.map((cell) => cell.href)")
    assert len(links) == 5
    return links


def failed(request: "api.Request") -> bool:
    """Whether a request failed by itself; leaving a page breaks off those that are under way."""
    return "ERR_ABORTED" not in (request.failure or "")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator["api.Browser"]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "api.Browser") -> Iterator["api.Page"]:
    """A page that fails the test for any console error, failed request or request elsewhere."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda r: failed(r) and wrong.append(r.url))
    page.on("request", lambda r: None if r.url.startswith("file:") else wrong.append(r.url))
    yield page
    page.close()
    assert wrong == []


def test_opens_from_the_disk_with_all_its_pictures(page: "api.Page", gallery: str) -> None:
    pictures = {
        "index.html": 2 * (5 + 8),  # the living ones; two montages each
        "layers/conv5.html": 2 * 15,
        "features/conv5/0013.html": 1 + 9,  # all projections in one, nine images
    }
    for address, count in pictures.items():
        page.goto(f"{gallery}/{address}")
        assert page.evaluate(BROKEN) == [count, []]
        assert "owned" not in page.title()
    assert page.locator(".winners > li").count() == 9
    assert HOSTILE in page.locator(".key").first.inner_text()


def test_montages_do_not_move_the_page_while_they_load(page: "api.Page", gallery: str) -> None:
    page.goto(f"{gallery}/layers/conv1.html", wait_until="commit")
    page.wait_for_selector("#f5")
    before = page.locator("#f5").bounding_box()
    page.wait_for_load_state("load")
    assert page.locator("#f5").bounding_box() == before


def test_keyboard(page: "api.Page", gallery: str) -> None:
    page.goto(f"{gallery}/features/conv5/0013.html")
    for key, address in (
        ("j", "features/conv5/0014.html"),
        ("j", "features/conv5/0014.html"),  # the last one
        ("ArrowLeft", "features/conv5/0013.html"),
        ("k", "features/conv5/0012.html"),
        ("ArrowRight", "features/conv5/0013.html"),
        ("u", "layers/conv5.html#f13"),
        ("[", "layers/conv1.html"),
        ("]", "layers/conv5.html"),
        ("u", "index.html"),
    ):
        page.keyboard.press(key)
        page.wait_for_url(f"{gallery}/{address}")
    page.goto(f"{gallery}/layers/conv5.html")
    for key in ("j", "j", "ArrowRight", "k"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.closest('li').id") == "f1"
    page.keyboard.press("?")
    assert page.locator("dialog[open]").is_visible()
    page.keyboard.press("j")  # the keys rest while the help is open
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{gallery}/features/conv5/0001.html")


def test_search(page: "api.Page", gallery: str) -> None:
    for query, address in (
        ("conv5 13", "features/conv5/0013.html"),
        ("conv5/13", "features/conv5/0013.html"),
        ("CONV5/0013", "features/conv5/0013.html"),
        ("conv1", "layers/conv1.html"),
        ("14", "features/conv5/0014.html"),
    ):
        page.goto(f"{gallery}/features/conv1/0002.html")
        page.keyboard.press("/")
        page.keyboard.type(query)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{gallery}/{address}")
    page.goto(f"{gallery}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("dog")
    notes = page.locator("#matches [role=option] span").all_inner_texts()
    assert notes
    assert set(notes) == {"dog"}
    page.locator("#search").fill("<img src=x")
    assert page.locator("#matches [role=option]").count() > 0
    assert page.locator("#matches img").count() == 0
    page.locator("#search").fill("nowhere")
    assert "Nothing found" in page.locator("#matches").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#matches").is_hidden()


@pytest.mark.parametrize("width", [400, 3840])
def test_fits_the_window(page: "api.Page", gallery: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for address in ("index.html", "layers/conv5.html", "features/conv5/0013.html"):
        page.goto(f"{gallery}/{address}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_chapters_show_all_their_pictures(page: "api.Page", chapters: str) -> None:
    first = occluded(page, chapters)[0].removeprefix(f"{chapters}/")
    pictures = {
        # Montages of the living features; images and maps; one image in an SVG.
        "index.html": 2 * 6 + 2 * 4 + 2 * 5 + 1,
        "occlusion/index.html": 2 * 5,
        first: 1 + 4 + 1 + 2,  # the image, its maps, its projection, the feature's two montages
        "invariance.html": 5,
        "correspondence.html": 5,
    }
    for address, count in pictures.items():
        page.goto(f"{chapters}/{address}")
        assert page.evaluate(BROKEN) == [count, []]
        assert "owned" not in page.title()


def test_the_value_under_the_pointer(page: "api.Page", chapters: str) -> None:
    page.goto(occluded(page, chapters)[0])
    readouts = page.locator(".now")
    assert readouts.all_inner_texts() == [""] * 4
    panel = page.locator("svg.map").first
    box = panel.bounding_box()
    assert box is not None
    unit = box["width"] / 32  # a pixel of the network's input
    corner = page.locator(".occluder rect").first
    x, y = (int(corner.get_attribute(name) or "") for name in "xy")  # where the pit is
    # A position reaches half a stride (4 x 5) from the centre of the occluder (8 x 10).
    panel.hover(position={"x": (x + 5 + 2) * unit, "y": (y + 4 + 1.5) * unit})
    assert readouts.all_inner_texts() == ["20", "0.10", HOSTILE, "40"]
    panel.hover(position={"x": (5 + 5 - 2) * unit, "y": (24 + 4 - 1.5) * unit})  # row 6, column 1
    assert readouts.all_inner_texts()[2] == "dog"
    assert float(readouts.all_inner_texts()[1]) > 0.8
    occluder, image = corner.bounding_box(), page.locator("svg.input").bounding_box()
    assert occluder is not None
    assert image is not None
    assert occluder["x"] - image["x"] == pytest.approx(5 * unit, abs=0.6)
    assert occluder["y"] - image["y"] == pytest.approx(24 * unit, abs=0.6)
    # The cursor lies on the position, about the centre of the occluder.
    cursor = page.locator("svg.map .cursor .light").first.bounding_box()
    assert cursor is not None
    assert cursor["x"] + cursor["width"] / 2 == pytest.approx(box["x"] + 10 * unit, abs=1)
    page.mouse.move(1, 1)
    assert readouts.all_inner_texts() == [""] * 4
    assert page.locator("svg.map .cursor:visible").count() == 0


def test_maps_and_images_by_keyboard(page: "api.Page", chapters: str) -> None:
    pages = occluded(page, chapters)
    page.goto(pages[0])
    for key, address in (("j", pages[1]), ("ArrowRight", pages[2]), ("k", pages[1])):
        page.keyboard.press(key)
        page.wait_for_url(address)
    page.locator("svg.map").nth(1).focus()
    page.keyboard.press("ArrowRight")  # of the map, not to the next image
    page.keyboard.press("ArrowUp")
    assert page.url == pages[1]
    assert "" not in page.locator(".now").all_inner_texts()
    page.keyboard.press("Tab")
    page.keyboard.press("u")
    page.wait_for_url(f"{chapters}/occlusion/index.html#i*")
    page.keyboard.press("u")
    page.wait_for_url(f"{chapters}/index.html")


def test_pages_of_images(page: "api.Page", chapters: str) -> None:
    """By keyboard from one to the next; all their pictures are there, on small windows too."""
    page.goto(f"{chapters}/deep/features/conv2/0001.html")
    page.locator(".winners .key a").first.click()
    page.wait_for_url(f"{chapters}/images/*.html")
    page.locator(".wins li a").first.click()
    page.wait_for_url(lambda url: "/features/" in url)
    page.goto(occluded(page, chapters)[0])
    page.locator("a.link[href*='images/']").click()
    page.wait_for_url(f"{chapters}/images/*.html")
    assert page.evaluate(BROKEN)[1] == []
    assert "owned" not in page.title()
    first = page.url
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url != first and "/images/" in url)
    page.keyboard.press("k")
    page.wait_for_url(first)
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_search_leads_into_every_scan(page: "api.Page", chapters: str) -> None:
    page.goto(f"{chapters}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("conv2 1")
    assert page.locator("#matches [role=option]").count() == 2
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{chapters}/deep/features/conv2/0001.html")
    page.keyboard.press("/")
    page.keyboard.type("deep")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{chapters}/index.html#scan-deep")


def test_a_curve_stands_out_with_its_image(page: "api.Page", chapters: str) -> None:
    page.goto(f"{chapters}/invariance.html")
    page.locator(".drawn a").nth(2).hover()
    lit = page.locator(".curve.lit").evaluate_all("all => all.map((x) => x.dataset.image)")
    assert lit == ["2"] * 15
    page.locator(".drawn a").nth(3).focus()
    page.mouse.move(1, 1)
    lit = page.locator(".curve.lit").evaluate_all("all => all.map((x) => x.dataset.image)")
    assert lit == ["3"] * 15


def test_search_finds_chapters(page: "api.Page", chapters: str) -> None:
    page.goto(f"{chapters}/invariance.html")
    page.keyboard.press("/")
    page.keyboard.type("Occl")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{chapters}/occlusion/index.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200, 3840])
def test_chapters_fit_the_window(page: "api.Page", chapters: str, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    first = occluded(page, chapters)[0].removeprefix(f"{chapters}/")
    addresses = ("index.html", "occlusion/index.html", "invariance.html", "correspondence.html")
    for address in (*addresses, first):
        page.goto(f"{chapters}/{address}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
