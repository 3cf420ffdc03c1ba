"""A job with nothing left out: absolute paths, and what the run remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from zfscale.engine import resolve
from zfscale.errors import UsageError
from zfscale.job import Job
from zfscale.runs.ledger import Ledger
from zfscale.storage import open_storage

MODEL = {"model": "zfscale:zfnet", "weights": "seed:0"}


def resolved(**spec) -> Job:
    return resolve.resolve(Job.model_validate(spec), lambda: "cpu").job


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    return tmp_path


def begin(run: Path, job: Job) -> None:
    """A run that remembers a job."""
    facts = {"spec": job.model_dump(mode="json")}
    Ledger.open(open_storage(str(run)), {"model": "known"}, {}, facts).commit(facts=facts)


def test_paths_become_absolute(here: Path) -> None:
    job = resolved(
        run="runs/one", model="zfscale:zfnet", weights="w.pt", classes="names.txt", images="images"
    )
    assert job.run == str(here / "runs/one")
    assert job.weights == str(here / "w.pt")
    assert job.classes == str(here / "names.txt")
    assert job.images == (str(here / "images"),)


def test_files_that_options_name_become_absolute(here: Path) -> None:
    given = {"correspondence": {"parts": "boxes.csv", "draws": 3}, "occlusion": {}}
    job = resolved(run="r", images="images", **MODEL, analyses=given)
    assert job.analyses["correspondence"] == {"parts": str(here / "boxes.csv"), "draws": 3}
    assert job.analyses["occlusion"] == {}


def test_urls_and_seeds_stay_as_they_are(here: Path) -> None:
    given = {"correspondence": {"parts": "memory:///boxes.csv"}}
    job = resolved(run="memory:///r", images="memory:///images", **MODEL, analyses=given)
    assert (job.run, job.weights, job.images) == ("memory:///r", "seed:0", ("memory:///images",))
    assert job.analyses == given


def test_a_second_job_takes_from_its_run_what_it_leaves_out(here: Path) -> None:
    first = resolved(run="r", images="images", batch=7, **MODEL, analyses={"scan": {}})
    begin(here / "r", first)
    second = resolved(run="r", analyses={"deconvolve": {}})
    assert second.model_dump(exclude={"analyses"}) == first.model_dump(exclude={"analyses"})
    assert second.analyses == {"deconvolve": {}}
    assert resolved(run="r", batch=9, analyses={"deconvolve": {}}).batch == 9


@pytest.mark.parametrize(("left_out", "message"), [
    ("model", "model: missing, and no run at"),
    ("images", "images: missing, and no run at"),
])  # fmt: skip
def test_what_nobody_says_is_named(here: Path, left_out: str, message: str) -> None:
    spec = {"run": "r", "images": "images", **MODEL}
    del spec[left_out]
    with pytest.raises(UsageError, match=message):
        resolved(**spec)


def test_a_sweep_over_other_images_than_the_scan_is_refused(here: Path) -> None:
    begin(here / "r", resolved(run="r", images="images", **MODEL, analyses={"scan": {}}))
    with pytest.raises(UsageError, match="holds a scan of"):
        resolved(run="r", images="others", analyses={"deconvolve": {}})


@pytest.mark.parametrize(("run", "images"), [("images/r", "images"), ("r", "r/images"), ("x", "x")])
def test_a_run_among_its_images_is_refused(here: Path, run: str, images: str) -> None:
    with pytest.raises(UsageError, match="lie one inside the other"):
        resolved(run=run, images=images, **MODEL)


def test_the_device_is_asked_for_where_it_is_open(here: Path) -> None:
    spec = {"run": "r", "images": "images", **MODEL}
    assert resolve.resolve(Job.model_validate(spec), lambda: "cuda").device == "cuda"
    setup = resolve.resolve(Job.model_validate(spec | {"device": "cpu"}), lambda: "cuda")
    assert setup.device == "cpu"
    assert 1 <= setup.threads <= resolve.GROUP
