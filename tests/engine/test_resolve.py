"""A job with nothing left out: absolute paths, named analyses, and what the run remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zfscale.engine import resolve
from zfscale.engine.resolve import THREADS, Machine, ResolvedJob
from zfscale.errors import UsageError
from zfscale.job import Job
from zfscale.records import Counts, Receipt
from zfscale.runs.ledger import Ledger, Planned
from zfscale.storage import open_storage

MODEL = {"model": "zfscale:zfnet", "weights": "seed:0"}
NEW = {"run": "r", "images": "images", **MODEL}


SMALL = Machine("cpu", 2)


def resolved(*, machine: Machine = SMALL, replaced: tuple[str, ...] = (), **keys: Any):
    return resolve.resolve(Job.model_validate(keys), lambda: machine, replaced)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    return tmp_path


def begin(run: Path, job: ResolvedJob, device: str = "") -> None:
    """A run that remembers a job and its analyses, each with a committed task."""
    planned = {stage.name: Planned(stage.kind, needs=stage.needs) for stage in job.stages}
    ledger = Ledger.open(
        open_storage(str(run)), {"model": "known"}, planned, {"job": job.remembered}
    )
    for name in planned:
        ledger.commit(name, [Receipt("0" * 20, (), Counts(), 0.1, device)])


def stages(job: ResolvedJob) -> dict[str, tuple[str, dict[str, str]]]:
    return {stage.name: (stage.kind, dict(stage.needs)) for stage in job.stages}


def test_paths_become_absolute(here: Path) -> None:
    job = resolved(
        run="runs/one", model="zfscale:zfnet", weights="w.pt", classes="names.txt", images="images"
    )
    assert job.run == str(here / "runs/one")
    assert job.weights == str(here / "w.pt")
    assert job.classes == str(here / "names.txt")
    assert job.images == (str(here / "images"),)


def test_files_that_options_name_are_known_by_path_and_content(here: Path) -> None:
    (here / "boxes.csv").write_text("key,part,y0,x0,y1,x1\n")
    given = {"scan": {}, "correspondence": {"parts": "boxes.csv", "draws": 3}}
    stage = resolved(**NEW, analyses=given).stages[-1]
    assert stage.analysis.options.parts == str(here / "boxes.csv")
    assert list(stage.files) == ["parts"]
    (here / "boxes.csv").write_text("key,part,y0,x0,y1,x1\n\n")
    assert resolved(**NEW, analyses=given).stages[-1].files != stage.files
    given["correspondence"]["parts"] = "none.csv"
    with pytest.raises(UsageError, match=r"analyses\.correspondence\.parts: .*none\.csv: cannot"):
        resolved(**NEW, analyses=given)


def test_urls_and_seeds_stay_as_they_are() -> None:
    job = resolved(run="memory:///r", images="memory:///images", **MODEL)
    assert (job.run, job.weights, job.images) == ("memory:///r", "seed:0", ("memory:///images",))


def test_a_second_job_takes_from_its_run_what_it_leaves_out(here: Path) -> None:
    first = resolved(**NEW, batch=7, analyses={"scan": {}})
    begin(here / "r", first, device="a chip")
    second = resolved(run="r", analyses={"deconvolve": {}})
    assert second.remembered == first.remembered
    assert second.device_name == "a chip"
    assert stages(second) == {
        "deconvolve": ("deconvolve", {"scan": "scan", "switches": "switches"})
    }
    assert resolved(run="r", batch=9, analyses={"deconvolve": {}}).batch == 9


@pytest.mark.parametrize(("left_out", "message"), [
    ("model", "model: missing, and no run at"),
    ("images", "images: missing, and no run at"),
])  # fmt: skip
def test_what_nobody_says_is_named(left_out: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolved(**{key: value for key, value in NEW.items() if key != left_out})


@pytest.mark.parametrize(("run", "images"), [("images/r", "images"), ("r", "r/images"), ("x", "x")])
def test_a_run_among_its_images_is_refused(run: str, images: str) -> None:
    with pytest.raises(UsageError, match="lie one inside the other"):
        resolved(run=run, images=images, **MODEL)


def test_a_run_inside_of_a_run_is_refused(here: Path) -> None:
    outer = here / "outer"
    (outer / "manifest").mkdir(parents=True)
    (outer / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="lies inside of the run"):
        resolved(**{**NEW, "run": str(outer / "segments" / "x")})


def test_device_and_cores_are_asked_for_where_they_are_open() -> None:
    job = resolved(**NEW, machine=Machine("cuda", 64))
    assert (job.device, job.threads_per_worker, job.decode_threads) == ("cuda", THREADS, THREADS)
    assert resolved(**NEW, machine=Machine("cpu", 2)).threads_per_worker == 2
    said = {"device": "cpu", "threads_per_worker": 3, "decode_threads": 5}
    job = resolve.resolve(Job.model_validate(NEW | said), machine=lambda: pytest.fail("asked"))
    assert (job.device, job.threads_per_worker, job.decode_threads) == ("cpu", 3, 5)


def test_options_are_validated_objects_and_one_layer_may_be_a_string() -> None:
    scan = resolved(**NEW, analyses={"scan": {"layers": "conv1"}}).stages[1]
    assert scan.analysis.options.layers == ("conv1",)
    assert scan.analysis.options.top_k == 9


def test_the_index_comes_first_and_switches_follow_each_scan() -> None:
    job = resolved(
        **NEW, analyses={"scan": {}, "deep": {"use": "scan", "layers": "conv5"}, "deconvolve": {}}
    )
    assert stages(job) == {
        "index": ("index", {}),
        "scan": ("scan", {"index": "index"}),
        "switches": ("switches", {"scan": "scan"}),
        "deep": ("scan", {"index": "index"}),
        "deep-switches": ("switches", {"scan": "deep"}),
        "deconvolve": ("deconvolve", {"scan": "scan", "switches": "switches"}),
    }
    deep = job.stages[3]
    assert [deep.published_as(table.name) for table in deep.analysis.tables] == [
        "deep_images", "deep_features", "deep_winners",
    ]  # fmt: skip


def test_switches_without_a_need_are_those_of_the_scan_called_scan() -> None:
    named = {"scan": {}, "switches": {}, "deep": {"use": "scan", "layers": "conv5"}}
    job = stages(resolved(**NEW, analyses=named))
    assert job["switches"] == ("switches", {"scan": "scan"})
    assert job["deep-switches"] == ("switches", {"scan": "deep"})
    only = {"deep": {"use": "scan"}, "switches": {}}
    assert list(stages(resolved(**NEW, analyses=only))) == ["index", "deep", "switches"]


def test_a_need_is_served_by_the_one_of_the_kind_or_the_one_that_is_said() -> None:
    named = {"mine": {"use": "scan"}, "deconvolve": {}}
    expected = {"scan": "mine", "switches": "mine-switches"}
    assert stages(resolved(**NEW, analyses=named))["deconvolve"][1] == expected
    two = {"a": {"use": "scan"}, "b": {"use": "scan"}, "deconvolve": {"needs": {"scan": "b"}}}
    expected = {"scan": "b", "switches": "b-switches"}
    assert stages(resolved(**NEW, analyses=two))["deconvolve"][1] == expected
    del two["deconvolve"]["needs"]
    with pytest.raises(UsageError, match=r"of a scan, of which there are a, b: say which with"):
        resolved(**NEW, analyses=two)


@pytest.mark.parametrize(
    ("analyses", "message"),
    [
        ({"nope": {}}, r"analyses\.nope: there is no such kind .*; there are correspondence"),
        ({"small": {"size": 0.1}}, r"says its kind: `small: \{use: KIND\}`"),
        ({"a": {"use": "nope"}}, r"analyses\.a\.use: nope: there is no such kind"),
        ({"a": {"use": 3}}, r"analyses\.a\.use: 3: expected the kind"),
        ({"scan": {"use": "occlusion"}}, r"analyses\.scan\.use: occlusion: scan is a kind"),
        ({"index": {}}, r"analyses\.index: the collection is indexed by itself"),
        ({"gallery": {"use": "scan"}}, r"analyses\.gallery: expected a name of letters"),
        ({"a/b": {"use": "scan"}}, r"analyses\.a/b: expected a name of letters"),
        ({"scan": {"needs": {"deconvolve": "x"}}}, r"analyses\.scan\.needs: .* of index"),
        ({"scan": {"needs": "index"}}, r"analyses\.scan\.needs: 'index': expected the names"),
        ({"scan": {}, "occlusion": {"needs": {"scan": "x"}}},
         r"occlusion\.needs\.scan: 'x': expected the name of a scan .*; there are scan"),
        ({"occlusion": {}}, r"analyses\.occlusion: .* neither the run has .*: add `scan: \{\}`"),
        ({"occlusion": {}, "scan": {}}, r"neither the run has nor the job before it"),
        ({"scan": {"topk": 3}}, r"analyses\.scan\.topk: unknown key; known are layers, top_k"),
        ({"scan": {"top_k": 0}}, r"analyses\.scan\.top_k: 0 is not accepted"),
        ({"scan": {}, "occlusion": {}, "x": {"use": "invariance", "size": 3}},
         r"analyses\.x\.size: unknown key"),
    ],
)  # fmt: skip
def test_mistakes_in_analyses_are_named(analyses: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolved(**NEW, analyses=analyses)


def test_two_tables_of_one_name_are_refused() -> None:
    given = {"scan": {}, "occlusion": {}, "occlusion_images": {"use": "occlusion"}}
    with pytest.raises(UsageError, match="table occlusion_images would be called like one of occ"):
        resolved(**NEW, analyses=given)


def test_what_is_to_be_replaced_must_be_there(here: Path) -> None:
    with pytest.raises(UsageError, match=r"--replace scan: .* has no such analysis; it has none"):
        resolved(**NEW, replaced=("scan",))
    begin(here / "r", resolved(**NEW, analyses={"scan": {}}), device="a chip")
    with pytest.raises(UsageError, match=r"--replace small: .*; it has index, scan, switches"):
        resolved(**NEW, replaced=("small",))
    # A run that keeps nothing may go on with workers of another kind.
    everything = ("index", "scan", "switches")
    assert resolved(**NEW, replaced=everything).device_name is None
    with pytest.raises(UsageError, match="neither the run has"):
        resolved(run="r", replaced=("scan",), analyses={"occlusion": {}})
