"""Analyses under names of their own in one run: each has its options, its tables and its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tinyjobs
from tinyjobs import no_work, run, stopping

import zfscale
from zfscale.cli import commands
from zfscale.cli.exit import exit_code
from zfscale.errors import FingerprintMismatch, UsageError
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

ANALYSES = {
    "scan": {"top_k": 3},
    "occlusion": {"stride": 0.2},
    "small-occluder": {"use": "occlusion", "size": 0.05},
}
SECOND = {"small-occluder": ANALYSES["small-occluder"]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty single files in a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(20):
        (folder / f"{seed:02d}.png").write_bytes(tinyjobs.image(seed))
    return folder


@pytest.fixture
def spec(images: Path, tmp_path: Path) -> dict[str, Any]:
    return tinyjobs.spec(tmp_path / "run", images, images=str(images), analyses=ANALYSES)


def cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and messages of a command; progress is not shown."""
    code = exit_code(commands, arguments)
    out, err = capsys.readouterr()
    return code, out, "".join(line for line in err.splitlines(True) if not line.startswith("{"))


def job(keys: dict[str, Any], path: Path) -> list[str]:
    path.write_text(json.dumps(keys))
    return ["run", str(path), "--serial"]


def test_two_occlusions_stand_side_by_side(spec) -> None:
    run(spec)
    results = zfscale.open(spec["run"])
    assert {"occlusion", "occlusion_images", "small-occluder", "small-occluder_images"} <= set(
        results.tables
    )
    small, large = results["small-occluder"], results["occlusion"]
    assert (small.kind, small.options["size"], large.options["size"]) == ("occlusion", 0.05, 0.15)
    assert set(small.images["height"]) == {1}
    assert set(large.images["height"]) == {2}
    assert len(small.table()) == 20 * 16 * 16
    assert len(large.table()) == len(results.occlusion) == 20 * 6 * 6
    frame = results.dataset("small-occluder").to_table().to_pandas()
    pd.testing.assert_frame_equal(frame, small.table())
    assert {path.name for path in Path(spec["run"]).iterdir()} >= {"occlusion", "small-occluder"}


def test_a_second_job_that_fails_leaves_the_rest_readable(spec, images, tmp_path, capsys) -> None:
    clean = run({**spec, "run": str(tmp_path / "clean")})
    first = {name: ANALYSES[name] for name in ("scan", "occlusion")}
    before = run({**spec, "analyses": first})
    second = job({"run": spec["run"], "analyses": SECOND}, tmp_path / "second.yaml")
    (images / "17.png").rename(tmp_path / "away.png")
    code, out, err = cli(capsys, *second)
    assert (code, out) == (5, "")
    assert err.startswith("zfscale: 17.png in ")
    assert "can no longer be read as scanned: restore" in err
    assert err.count("\n") == 1

    results = zfscale.open(spec["run"])
    assert len(results.images) == 20
    assert len(results.occlusion) == 20 * 6 * 6
    assert {name: each.state.value for name, each in results.analyses.items()} == {
        "index": "complete", "scan": "complete", "switches": "complete",
        "occlusion": "complete", "small-occluder": "failed",
    }  # fmt: skip
    assert "small-occluder" not in results.tables
    with pytest.raises(UsageError, match=r"not complete \(state failed\): 17\.png in .* says how"):
        results["small-occluder"].table()
    assert digest(open_storage(spec["run"])) == before

    code, out, _ = cli(capsys, "show", spec["run"])
    assert code == 0
    states = {row.split()[0]: row.split()[2] for row in out.splitlines()[1:6]}
    assert states["small-occluder"] == "failed"
    assert states["scan"] == "complete"
    assert "\nsmall-occluder failed: 17.png in " in out
    assert out.endswith(f"Go on with:\n  zfscale {second[0]} {second[1]} --serial\n")

    (tmp_path / "away.png").rename(images / "17.png")
    assert cli(capsys, *second)[0] == 0
    assert digest(open_storage(spec["run"])) == clean


def test_an_interrupted_second_job_goes_on(spec, tmp_path, capsys, monkeypatch) -> None:
    clean = run({**spec, "run": str(tmp_path / "clean")})
    run({**spec, "analyses": {name: ANALYSES[name] for name in ("scan", "occlusion")}})
    second = job({"run": spec["run"], "analyses": SECOND}, tmp_path / "second.yaml")
    again = f"zfscale run {tmp_path}/second.yaml --serial"
    with monkeypatch.context() as patch:
        patch.setattr("zfscale.engine.worker.Serial", stopping("small-occluder", after=1))
        code, out, err = cli(capsys, *second, "--workers", "1")
    assert (code, out) == (130, "")
    again = f"zfscale run {tmp_path}/second.yaml --set workers=1 --serial"
    assert err == f"zfscale: interrupted; finished tasks are kept. Resume with:\n  {again}\n"

    results = zfscale.open(spec["run"])
    assert len(results.occlusion) == 20 * 6 * 6
    small = results["small-occluder"]
    assert (small.state.value, small.error, small.tables) == ("interrupted", None, ())
    code, out, _ = cli(capsys, "show", spec["run"], "--json")
    told = {each["name"]: each for each in json.loads(out)}
    assert told["small-occluder"]["tasks"] == 1
    assert told["small-occluder"]["command"] == again
    assert told["scan"]["command"] is None

    assert cli(capsys, *second)[0] == 0
    assert digest(open_storage(spec["run"])) == clean
    code, out, _ = cli(capsys, "show", spec["run"])
    assert "Go on with" not in out


def test_other_options_under_one_name_are_refused_and_both_ways_out_work(spec, tmp_path) -> None:
    first = {name: ANALYSES[name] for name in ("scan", "occlusion")}
    before = run({**spec, "analyses": first})
    changed = {**spec, "analyses": {"occlusion": {"stride": 0.3, "memory": 64}}}
    with pytest.raises(FingerprintMismatch) as refused:
        run(changed)
    message = str(refused.value)
    assert "analyses.occlusion: " in message
    assert "memory: 512 → 64; stride: 0.2 → 0.3" in message
    assert "`occlusion-2: {use: occlusion, ...}`" in message
    assert message.endswith("--replace occlusion")
    assert digest(open_storage(spec["run"])) == before
    results = zfscale.open(spec["run"])
    assert results["occlusion"].state.value == "complete"

    other = {"occlusion-2": {"use": "occlusion", "stride": 0.3, "memory": 64}}
    run({**spec, "analyses": other})
    run(changed, tinyjobs.Serial, "occlusion")
    results = zfscale.open(spec["run"])
    pd.testing.assert_frame_equal(results.occlusion, results["occlusion-2"].table())
    assert results["occlusion"].options["stride"] == 0.3
    # The job that goes on does not drop it again, and nothing else was touched.
    run(changed, no_work)
    run({**spec, "analyses": {"scan": {"top_k": 3}}}, no_work)


def test_another_scan_or_kind_under_one_name_is_another_analysis(spec) -> None:
    given = {"scan": {"top_k": 3}, "deep": {"use": "scan", "layers": "conv2", "top_k": 2},
             "at": {"use": "occlusion", "needs": {"scan": "scan"}, "stride": 0.3}}  # fmt: skip
    run({**spec, "analyses": given})
    results = zfscale.open(spec["run"])
    assert set(results["deep"].winners["layer"]) == {"conv2"}
    assert results["deep"].winners["rank"].max() == 1
    assert results.winners["rank"].max() == 2
    pd.testing.assert_frame_equal(results["deep"].images, results["scan"].images)
    for change, told in [
        (
            {"use": "occlusion", "needs": {"scan": "deep"}, "stride": 0.3},
            r"needs\.scan: scan → deep",
        ),
        ({"use": "invariance", "needs": {"scan": "scan"}}, "use: occlusion → invariance"),
    ]:
        with pytest.raises(FingerprintMismatch, match=told):
            run({"run": spec["run"], "analyses": {"at": change}})


def test_replaced_results_leave_what_rests_on_them_outdated(spec, tmp_path, capsys) -> None:
    rest = {"deconvolve": {}, "occlusion": ANALYSES["occlusion"]}
    given = {"scan": {"top_k": 2}, **rest}
    clean = run({**spec, "run": str(tmp_path / "clean"), "analyses": given})
    run({**spec, "analyses": {"scan": {"top_k": 3}, **rest}})
    run({**spec, "analyses": {"scan": {"top_k": 2}}}, tinyjobs.Serial, "scan")
    results = zfscale.open(spec["run"])
    assert results.winners["rank"].max() == 1
    assert results["occlusion"].is_outdated
    assert "occlusion" not in results.tables
    assert not results.has_projections("conv2")
    with pytest.raises(UsageError, match="is outdated: what it was made from was replaced"):
        results["occlusion"].table()
    rows = cli(capsys, "show", spec["run"])[1].splitlines()[1:]
    states = {row.split()[0]: row.split()[2] for row in rows if row and not row.startswith(" ")}
    assert states["scan"] == states["switches"] == "complete"
    assert states["deconvolve"] == states["occlusion"] == "outdated"
    # Arrays of another shape give way to the new ones, and nothing of them counts as damaged.
    assert run({**spec, "analyses": rest}) == clean
    code, out, err = cli(capsys, "verify", spec["run"])
    assert (code, out) == (0, f"{clean}\n"), err
    run({**spec, "analyses": given}, no_work)


def test_all_images_come_as_a_stream_and_give_the_same(spec) -> None:
    streamed = {"use": "occlusion", "images": "all", "stride": 0.05}
    listed = streamed | {"images": {"sample": 100}}
    given = {"scan": {"top_k": 3}, "streamed": streamed, "listed": listed}
    with pytest.raises(KeyboardInterrupt):
        run({**spec, "analyses": given}, stopping("streamed", after=1))
    run({**spec, "analyses": given})
    results = zfscale.open(spec["run"])
    assert len(results["streamed"].images) == 20
    for table in results["listed"].tables:
        pd.testing.assert_frame_equal(
            results["streamed"].table(table), results["listed"].table(table)
        )
    assert results["streamed"].counts == results["listed"].counts
