"""A package of one's own: an analysis and its page, installed, run and read as the built-in ones.

The package is the one of the documents, `tests/plugin_example`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import zfscale
from zfscale.datasets import parts

ROOT = Path(__file__).parents[1]
EXAMPLE = Path(__file__).parent / "plugin_example"


def install(package: Path, target: Path) -> Path:
    """Install a package into a folder that is to stand in PYTHONPATH."""
    source = target.parent / f"{target.name}-source"  # a build leaves files beside its source
    shutil.copytree(package, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=target.parent)
    return target


def command_line(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`zfscale` in a process that finds the packages in `site`."""
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "zfscale", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(EXAMPLE, tmp_path_factory.mktemp("plugin") / "site")


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with the example, under its own name and under another with options."""
    folder = tmp_path_factory.mktemp("run")
    parts.write(str(folder / "images"), count=12, seed=4)
    toy = {"use": "brightness", "images": 5, "seed": 3}
    work = {"run": str(folder / "run"), "model": "zfscale:zfnet-mini", "batch": 4}
    work |= {"images": str(folder / "images"), "device": "cpu", "threads_per_worker": 1}
    work |= {"analyses": {"scan": {"layers": ["conv1"]}, "brightness": {}, "toy": toy}}
    (folder / "job.yaml").write_text(yaml.safe_dump(work, sort_keys=False))
    done = command_line(site, "run", str(folder / "job.yaml"), "--serial")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_its_table_is_there_for_pandas_and_in_the_results(run: Path) -> None:
    results = zfscale.open(str(run))
    whole, toy = results["brightness"].table(), results["toy"].table()
    assert (results["toy"].kind, results["toy"].options) == (
        "brightness",
        {"images": 5, "seed": 3},
    )
    pd.testing.assert_frame_equal(pd.read_parquet(run / "toy"), toy)
    assert (len(whole), len(toy)) == (12, 5)
    images = results.images.set_index("id")
    for row in whole.itertuples():
        pixels = results.image(row.image_id).astype(np.float64)
        assert row.brightness == pytest.approx(pixels.mean() / 255, rel=1e-12)
        assert row.predicted == images.loc[row.image_id, "predicted"]
    chosen = whole[whole["image_id"].isin(toy["image_id"])]
    mine, theirs = (frame.sort_values("image_id", ignore_index=True) for frame in (toy, chosen))
    pd.testing.assert_frame_equal(mine, theirs)


def test_its_page_is_in_the_gallery(site: Path, run: Path) -> None:
    done = command_line(site, "gallery", str(run))
    assert done.returncode == 0, done.stderr
    for name in ("brightness", "toy"):
        text = (run / "gallery" / f"{name}.html").read_text()
        for row in zfscale.open(str(run))[name].table().groupby("predicted").size().items():
            assert "<td>{}<td>{}\n".format(*row) in text
    assert "<h1>Brightness: toy</h1>" in (run / "gallery" / "toy.html").read_text()
    shown = set()
    for row in zfscale.open(str(run))["brightness"].table().itertuples():
        page = run / "gallery" / "images" / f"{row.image_id}.html"
        if page.exists():
            assert f"{row.brightness:.3f}" in page.read_text()
            shown.add(row.image_id)
    assert shown == set(zfscale.open(str(run)).winners["image_id"])


def test_its_options_are_in_the_schema_and_checked(site: Path, run: Path) -> None:
    schema = json.loads(command_line(site, "schema").stdout)
    described = schema["properties"]["analyses"]["properties"]["brightness"]["properties"]
    assert described["images"]["description"] == "Images in the sample."
    assert described["needs"]["description"]
    job = str(run.parent / "job.yaml")
    wrong = command_line(site, "run", job, "--serial", "--set", "analyses.toy.images=0")
    assert wrong.returncode == 2
    assert "analyses.toy.images: 0 is not accepted" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_it_is_verified_like_the_others(site: Path, run: Path) -> None:
    verified = command_line(site, "verify", str(run))
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (
            "import nowhere\n",
            " (broken:Broken) cannot be loaded: ModuleNotFoundError: No module named 'nowhere'",
        ),
        (
            "class Broken:\n    kind = 'broken'\n",
            ": broken:Broken is no subclass of zfscale.analysis.Analysis with kind = 'broken'",
        ),
    ],
)
def test_a_broken_package_is_told_in_one_line(tmp_path: Path, module: str, told: str) -> None:
    add_broken(tmp_path, "analyses", "broken = broken:Broken", module)
    done = run_job(tmp_path, analyses={"broken": {}})
    assert done.returncode == 2
    assert done.stderr == f"zfscale: the analysis broken of the package zfscale-broken{told}\n"


@pytest.mark.parametrize(
    ("group", "name", "keys", "told"),
    [
        ("sources", "broken", {}, "format"),
        ("storages", "memory", {"run": "memory://run"}, "storage"),
        ("models", "broken", {"model": "broken:net"}, "source of models"),
    ],
)
def test_whatever_a_broken_package_adds(
    group: str, name: str, keys: dict[str, str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"")
    add_broken(tmp_path, group, f"{name} = broken", "import nowhere\n")
    done = run_job(tmp_path, images=str(tmp_path / "images"), **keys)
    assert done.returncode == 2, done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("zfscale:")]
    assert line == (
        f"zfscale: the {told} {name} of the package zfscale-broken (broken) cannot be loaded: "
        "ModuleNotFoundError: No module named 'nowhere'"
    )
    assert "Traceback" not in done.stderr


def test_a_format_that_lacks_something(tmp_path: Path) -> None:
    add_broken(tmp_path, "sources", "broken = broken", "SUFFIXES = ()\nshards = index = read = 1\n")
    done = run_job(tmp_path, format="broken")
    assert done.returncode == 2
    assert done.stderr == (
        "zfscale: the format broken of the package zfscale-broken: broken has no class_names, "
        "records\n"
    )


def add_broken(site: Path, group: str, entry: str, module: str) -> None:
    described = site / "zfscale_broken-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: zfscale-broken\nVersion: 1\n")
    (described / "entry_points.txt").write_text(f"[zfscale.{group}]\n{entry}\n")
    (site / "broken.py").write_text(module)


def run_job(site: Path, **keys: Any) -> subprocess.CompletedProcess[str]:
    work = {"run": str(site / "run"), "model": "zfscale:zfnet-mini", "images": "images"}
    (site / "job.yaml").write_text(yaml.safe_dump(work | keys))
    return command_line(site, "run", str(site / "job.yaml"), "--serial")
