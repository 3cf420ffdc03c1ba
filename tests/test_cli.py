"""The command line: light, one message an error, exit codes that scripts can rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import tinyjobs

import zfscale
from zfscale import errors
from zfscale.cli import commands
from zfscale.cli.exit import exit_code
from zfscale.cli.run import lines
from zfscale.engine.events import Summary
from zfscale.job import Job, load
from zfscale.records import Counts

HEAVY = {"torch", "torchvision", "ray", "pandas", "pyarrow", "pydantic", "zarr", "numpy", "tqdm"}


def zf(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zfscale", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), **options
    )


def environment() -> dict[str, str]:
    """That of this process, with the tests' own network importable."""
    places = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, zfscale.cli; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert HEAVY & set(loaded) == set()
    assert "click" in loaded


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(commands.commands) == {
        "run", "train", "submit", "status", "logs", "stop", "list",
        "layers", "show", "verify", "gallery", "images", "schema", "gc",
    }  # fmt: skip
    for name, command in commands.commands.items():
        assert exit_code(commands, [name, "--help"]) == 0
        assert command.help
        assert command.help.splitlines()[0] in " ".join(capsys.readouterr().out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(commands, ["--version"]) == 0
    assert zfscale.__version__ in capsys.readouterr().out


def ending(error: BaseException, *arguments: str) -> int:
    """The exit code of a command that raises `error`."""

    @click.command(params=[click.Option(["--debug"], is_flag=True)])
    def failing(debug: bool) -> None:
        raise error

    return exit_code(failing, arguments)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ZfscaleError("x"), 1),
        (errors.NonFiniteActivations("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.FingerprintMismatch("x"), 2),
        (errors.OverBudget("x"), 3),
        (errors.TaskFailed("x"), 4),
        (errors.IntegrityError("x"), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("zfscale: interrupted\n" if code == 130 else "zfscale: x\n")


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(errors.UsageError("the cause"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "JOB.yaml"),
        (["no-such-command"], "no-such-command"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "job.yaml", "--serial", "--address", "auto"], "contradict"),
        (["run", "job.yaml", "--set", "batch=none"], "batch: 'none'"),
        (["run", "job.yaml", "--workers", "0"], "workers"),
        (["submit", "job.yaml", "--address", "127.0.0.1:8265"], "expected the URL"),
    ],
)
def test_usage_errors_name_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text("run: out\nmodel: zfscale:zfnet\nimages: x\n")
    assert exit_code(commands, arguments) == 2
    assert message in capsys.readouterr().err


TALKING = """
import sys, click
from zfscale.cli.exit import exit_code

@click.command()
def talking():
    for number in range(100_000):
        click.echo(number)

sys.exit(exit_code(talking, []))
"""


def test_whoever_closes_our_output_gets_no_traceback() -> None:
    talking = subprocess.Popen(
        [sys.executable, "-c", TALKING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert talking.stdout is not None
    assert talking.stderr is not None
    assert talking.stdout.readline() == "0\n"
    talking.stdout.close()
    assert talking.stderr.read() == ""
    assert talking.wait(20) == 1


WAITING = """
import sys, time, click
from zfscale.cli.exit import end, exit_code, resumable

@click.command()
def waiting():
    with resumable("zfscale run again"):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("committed", flush=True)
            time.sleep(float(sys.argv[1]))

end(exit_code(waiting, []))
"""


def interrupted(cleanup: float, *signals: signal.Signals) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(cleanup)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number, each in enumerate(signals):
        if number:
            assert process.stdout.readline() == "committed\n"
        os.kill(process.pid, each)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_one_interrupt_ends_in_order_and_says_how_to_go_on(number: signal.Signals) -> None:
    code, out, err = interrupted(0, number)
    assert code == 130
    assert out == "committed\n"
    resume = "zfscale run again"
    assert err == f"zfscale: interrupted; finished tasks are kept. Resume with:\n  {resume}\n"


def test_a_second_interrupt_ends_at_once() -> None:
    code, out, err = interrupted(60, signal.SIGINT, signal.SIGTERM)
    assert code == 130
    assert (out, err) == ("", "")  # nothing of what would have been done in a minute


WRITING = """
import os, signal, sys, tempfile, threading, time
from pathlib import Path
import zarr
from zfscale import cli

@cli.commands.command()
def writing():
    with tempfile.TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
        array = zarr.create_array(f"{folder}/a.zarr", shape=(20000,), chunks=(1,), dtype="u1")
        threading.Thread(target=interrupt, args=[Path(folder)], daemon=True).start()
        print("begun")
        array[:] = 1

def interrupt(folder):
    while not list(folder.glob("a.zarr/c/*")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

cli.main(["writing"])
"""


def test_an_interrupt_in_the_middle_of_arrays_is_quiet(tmp_path: Path) -> None:
    """Hundreds of writes are under way in Zarr's event loop, each of which could complain."""
    done = subprocess.run(
        [sys.executable, "-c", WRITING], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        130, "begun\n", "zfscale: interrupted\n",
    )  # fmt: skip


def test_the_summary_adds_up_and_says_what_comes_next() -> None:
    counts = Counts(images=1234, ok=1230, quarantined=3, duplicate=1)
    text = lines(Summary("runs/x", counts, 80.0, top1=0.4321, top5=0.2))
    assert text[0] == ("1,234 images in = 1,230 ok + 3 quarantined + 1 duplicate, in 1 min 20 s")
    assert text[1] == "top-1 error 43.21%, top-5 error 20.00%"
    assert "  zfscale gallery runs/x" in text
    assert len(lines(Summary("runs/x", counts, 80.0))) == len(text) - 1


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    """What `zfscale schema` prints, ready to validate with."""
    document = json.loads(zf("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_the_schema_holds_the_options_of_every_analysis(schema) -> None:
    from zfscale import analyses

    options = schema.schema["properties"]["analyses"]["properties"]
    assert sorted(options) == sorted(set(analyses.names()) - {"index"})
    assert "top_k" in options["scan"]["properties"]
    assert "model" in schema.schema["properties"]


JOB = {"run": "r", "model": "zfscale:zfnet", "images": "x"}


@pytest.mark.parametrize(
    "analyses",
    [
        {"scan": {}, "deconvolve": None},
        {"scan": {"layers": "conv1"}, "occlusion": {"images": {"keys": ["a"]}, "size": [3, 0.5]}},
        {"occlusion": {}, "small-occluder": {"use": "occlusion", "size": 0.05}},
        {"scan": {"use": "scan"}, "d": {"use": "deconvolve", "needs": {"scan": "scan"}}},
    ],
)
def test_the_schema_accepts_jobs_with_named_analyses(schema, analyses: dict[str, Any]) -> None:
    schema.validate(JOB | {"analyses": analyses})
    Job.model_validate(JOB | {"analyses": analyses})


@pytest.mark.parametrize(
    "analyses",
    [
        {},
        {"small-occluder": {"size": 0.05}},
        {"small-occluder": {"use": "occluder"}},
        {"small-occluder": {"use": "occlusion", "top_k": 3}},
        {"scan": {"topk": 3}},
        {"scan": {"use": "occlusion"}},
        {"scan": {"needs": "index"}},
        {"occlusion": {"images": {"sampled": 3}}},
        {"occlusion": {"memory": 1}},
    ],
)
def test_the_schema_refuses_what_a_run_refuses(
    schema, analyses: dict[str, Any], tmp_path: Path
) -> None:
    from zfscale.engine import resolve

    assert not schema.is_valid(JOB | {"analyses": analyses})
    with pytest.raises((errors.UsageError, ValueError)):
        resolve.resolve(Job.model_validate(JOB | {"analyses": analyses, "run": str(tmp_path)}))


def test_layers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(commands, ["layers", "torchvision:squeezenet1_1", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[0]["channels"] == 64
    assert exit_code(commands, ["layers", "torchvision:squeezenet1_1"]) == 0
    *table, legend = capsys.readouterr().out.splitlines()
    assert len(table) == len(listed) + 1
    assert table[1].split()[:2] == ["*", listed[0]["name"]]
    marked = [row.startswith("* ") for row in table[1:]]
    assert marked == [row["observed"] for row in listed]
    assert len({len(row) for row in table}) == 1
    assert legend.startswith("* observed by a scan")


def test_parts_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parts"
    assert exit_code(commands, ["images", "parts", "--count", "3", "--out", str(out)]) == 0
    assert [Path(line) for line in capsys.readouterr().out.split()] == list(out.glob("*.tar"))


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of several tasks, with paths of its own."""
    folder = tmp_path_factory.mktemp("job")
    tinyjobs.write_shards(folder / "shards", 8)
    job = folder / "job.yaml"
    job.write_text(
        f"run: {folder}/whole\nmodel: tinyjobs:build\nweights: seed:0\nbatch: 4\n"
        f"images: {folder}/shards\nanalyses: {{scan: {{top_k: 2}}}}\n"
    )
    return job


def test_the_device_of_a_cluster_is_that_of_its_workers(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from zfscale.cluster import resources
    from zfscale.engine import driver
    from zfscale.engine.resolve import Machine

    asked: list[str] = []
    found: list[tuple[str, int]] = []

    def machine(address: str) -> Machine:
        asked.append(address)
        return Machine("cuda", 3)

    def run(job: Any, *_: Any) -> Summary:
        found.append((job.device, job.threads_per_worker))
        return Summary("runs/x", Counts(), 0.0)

    monkeypatch.setattr(resources, "machine", machine)
    monkeypatch.setattr(driver, "run", run)
    job = ["run", str(job_file), "--set", f"run={tmp_path}/run"]
    assert exit_code(commands, [*job, "--address", "auto"]) == 0
    assert (asked, found) == (["auto"], [("cuda", 3)])
    # Who says both needs no cluster to find out; and this machine is asked for itself alone.
    said = ["--set", "device=cpu", "--set", "threads_per_worker=2"]
    assert exit_code(commands, [*job, "--address", "auto", *said]) == 0
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert exit_code(commands, [*job, "--set", "threads_per_worker=1"]) == 0
    assert (asked, found) == (["auto"], [("cuda", 3), ("cpu", 2), ("cpu", 1)])


def test_a_run_ends_with_sums_and_verify_with_a_digest(job_file: Path) -> None:
    done = zf("run", str(job_file), "--serial", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["counts"]["ok"] == 32
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()][-1] == "Finished"
    checked = zf("verify", summary["run"])
    assert checked.returncode == 0, checked.stderr
    assert len(checked.stdout.strip()) == 64
    victim = next((job_file.parent / "whole" / "winners").rglob("*.parquet"))
    kept = victim.read_bytes()
    victim.write_bytes(kept[:-1])
    damaged = zf("verify", summary["run"])
    assert damaged.returncode == 5
    assert victim.name in damaged.stderr
    victim.write_bytes(kept)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(job_file: Path, tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "interrupted"
    shards.mkdir()
    for number in range(8):  # tasks of a moment each, to interrupt between them
        tinyjobs.write_tar(shards / f"{number}.tar", range(number * 100, number * 100 + 100))
    images = ["--set", f"images={shards}"]
    arguments = ["run", str(job_file), "--set", f"run={run}", *images]
    process = subprocess.Popen(
        [sys.executable, "-m", "zfscale", *arguments, "--workers", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(run.glob("segments/scan/*-winners-*"))) < 3:
        assert process.poll() is None, "the job ended before it could be interrupted"
        assert time.monotonic() < deadline, "no task of the scan was done"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "Task was destroyed" not in err
    arguments += ["--set", "workers=1"]
    assert "  zfscale " + " ".join(arguments) in err.splitlines()

    again = zf(*arguments)
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stderr.splitlines()]
    begun = next(event for event in events if event["event"] == "StageBegun")
    assert begun["stage"] == "scan"
    assert 0 < begun["tasks"] < 8  # some were committed before
    whole = zf("run", str(job_file), "--serial", "--set", f"run={tmp_path}/all", *images)
    assert whole.returncode == 0, whole.stderr
    digest = zf("verify", str(run)).stdout
    assert len(digest.strip()) == 64
    assert digest == zf("verify", f"{tmp_path}/all").stdout


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("run: a\nmodel: zfscale:cifar\nimages: x\nanalyses: {scan: {}}\nmodel: other\n")
    with pytest.raises(errors.UsageError, match=r"'model' is there twice(.|\n)*line 5"):
        load(path)
    path.write_text("run: a\nanalyses:\n  scan: {top_k: 5, top_k: 9}\n")
    with pytest.raises(errors.UsageError, match=r"'top_k' is there twice"):
        load(path)


def test_a_key_set_twice_is_refused(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["--set", "batch=3", "--set", "batch=5"]
    assert exit_code(commands, ["run", str(job_file), *twice]) == 2
    assert "--set batch=3: the key batch is given 2 times" in capsys.readouterr().err
    # A shorthand says the same key.
    assert exit_code(commands, ["run", str(job_file), "--set", "workers=3", "--workers", "5"]) == 2
    assert "the key workers is given 2 times" in capsys.readouterr().err


def test_a_batch_too_large_for_the_memory_is_named(job_file: Path) -> None:
    # As many images as no machine holds; the images themselves are few.
    fresh = f"run={job_file.parent}/large"
    done = zf("run", str(job_file), "--serial", "--set", fresh, "--set", "batch=100000000000")
    assert done.returncode == 2
    assert "batch: 100000000000 images of tinyjobs:build need " in done.stderr
    assert "use a batch of at most " in done.stderr
    assert "Traceback" not in done.stderr
