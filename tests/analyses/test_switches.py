"""Switches follow each scan: which scan they are of, and that a scan without pools has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import zfscale
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.events import Event, StageBegun
from zfscale.engine.resolve import Machine
from zfscale.engine.stages import Stage
from zfscale.engine.worker import Serial
from zfscale.errors import UsageError
from zfscale.job import Job
from zfscale.runs.manifest import State

DEEP = {"use": "scan", "layers": ["conv3"], "top_k": 2}
OF_DEEP = {"use": "deconvolve", "needs": {"scan": "deep"}}


def job(run: Path | str, images: Path | str, analyses: dict) -> Job:
    work = {"run": str(run), "images": str(images), "batch": 4, "model": "zfscale:zfnet-mini"}
    return Job.model_validate(work | {"analyses": analyses})


def stages(**analyses: dict) -> dict[str, Stage]:
    resolved = resolve.resolve(job("run", "images", analyses), lambda: Machine("cpu", 1))
    return {stage.name: stage for stage in resolved.stages}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switches") / "images"
    parts.write(str(folder), count=10, seed=5)
    return folder


def carry_out(run: Path, images: Path, analyses: dict) -> list[Event]:
    told: list[Event] = []
    driver.run(resolve.resolve(job(run, images, analyses)), Serial, told.append)
    return told


def test_every_scan_brings_its_own() -> None:
    found = stages(scan={}, deep=DEEP, deconvolve={})
    assert list(found) == ["index", "scan", "switches", "deep", "deep-switches", "deconvolve"]
    assert found["switches"].needs == {"scan": "scan"}
    assert found["deep-switches"].needs == {"scan": "deep"}
    assert found["deconvolve"].needs == {"scan": "scan", "switches": "switches"}


def test_a_job_may_name_them_itself() -> None:
    mine = {"use": "switches", "needs": {"scan": "deep"}}
    found = stages(deep=DEEP, mine=mine, **{"of-deep": OF_DEEP})
    assert list(found) == ["index", "deep", "mine", "of-deep"]
    assert found["of-deep"].needs == {"scan": "deep", "switches": "mine"}


def test_switches_of_another_scan_are_refused() -> None:
    wrong = {"needs": {"scan": "scan", "switches": "deep-switches"}}
    for given in (wrong, {"needs": {"switches": "deep-switches"}}):
        with pytest.raises(UsageError, match="'deep-switches' rests on the scan deep, not on"):
            stages(scan={}, deep=DEEP, deconvolve=given)


def test_no_pool_below_no_task(images: Path, tmp_path: Path) -> None:
    told = carry_out(tmp_path / "run", images, {"scan": {"layers": ["conv1"]}, "deconvolve": {}})
    begun = [event.stage for event in told if isinstance(event, StageBegun)]
    assert begun == ["index", "scan", "deconvolve"]
    results = zfscale.open(str(tmp_path / "run"))
    assert results["switches"].state == State.COMPLETE
    assert not (tmp_path / "run" / "switches.zarr").exists()
    assert results.projection("conv1", 0).any()


def test_two_scans_of_a_run_do_not_meet(images: Path, tmp_path: Path) -> None:
    """Switches and projections of a scan under a name of its own are those that it has alone."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    scans = {"scan": {"layers": ["conv2"], "top_k": 3}, "deep": DEEP}
    carry_out(both, images, {**scans, "deconvolve": {}, "of-deep": OF_DEEP})
    own = {key: value for key, value in DEEP.items() if key != "use"}
    carry_out(alone, images, {"scan": own, "deconvolve": {}})
    pairs = {"deep-switches.zarr/conv3/pool1": "switches.zarr/conv3/pool1"}
    pairs |= {"deep-switches.zarr/conv3/pool2": "switches.zarr/conv3/pool2"}
    pairs |= {"of-deep_projections.zarr/conv3": "projections.zarr/conv3"}
    for named, plain in pairs.items():
        one, other = (
            np.asarray(zarr.open_array(str(at))[:]) for at in (both / named, alone / plain)
        )
        np.testing.assert_array_equal(one, other)
        assert one.std() > 0
    results = zfscale.open(str(both))
    assert set(results["deep"].winners["layer"]) == {"conv3"}
    assert results.projections("conv2").shape[1] == 3
    assert not (both / "switches.zarr" / "conv3").exists()
