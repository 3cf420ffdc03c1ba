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
import pytest

import zfscale
from zfscale import errors
from zfscale.cli import commands
from zfscale.cli.exit import exit_code
from zfscale.cli.run import lines
from zfscale.engine.events import Summary
from zfscale.job import load
from zfscale.records import Counts

HEAVY = {"torch", "torchvision", "ray", "pandas", "pyarrow", "pydantic", "zarr", "numpy", "tqdm"}


def zf(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zfscale", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, zfscale.cli; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert HEAVY & set(loaded) == set()
    assert "click" in loaded


def test_help_is_there_at_once() -> None:
    def seconds() -> float:
        began = time.monotonic()
        assert zf("--help").returncode == 0
        return time.monotonic() - began

    assert min(seconds() for _ in range(5)) < 0.4


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(commands.commands) == {
        "run", "train", "submit", "status", "logs", "stop", "list",
        "layers", "verify", "gallery", "images", "schema", "gc",
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
from zfscale.cli.exit import exit_code, resumable

@click.command()
def waiting():
    with resumable():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("committed", flush=True)
            time.sleep(float(sys.argv[1]))

sys.exit(exit_code(waiting, []))
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
    assert "zfscale 0" in err  # the command with its arguments
    assert "Traceback" not in err


def test_a_second_interrupt_ends_at_once() -> None:
    began = time.monotonic()
    code, _, err = interrupted(60, signal.SIGINT, signal.SIGTERM)
    assert code == 130
    assert err == ""
    assert time.monotonic() - began < 20


def test_the_summary_adds_up_and_says_what_comes_next() -> None:
    counts = Counts(images=1234, ok=1230, quarantined=3, duplicate=1)
    text = lines(Summary("runs/x", counts, 80.0, top1=0.4321, top5=0.2))
    assert text[0] == ("1,234 images in = 1,230 ok + 3 quarantined + 1 duplicate, in 1 min 20 s")
    assert text[1] == "top-1 error 43.21%, top-5 error 20.00%"
    assert "  zfscale gallery runs/x" in text
    assert len(lines(Summary("runs/x", counts, 80.0))) == len(text) - 1


def test_the_schema_holds_the_options_of_every_analysis(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from zfscale import analyses

    assert exit_code(commands, ["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    options = schema["properties"]["analyses"]["properties"]
    assert sorted(options) == analyses.names()
    assert "top_k" in options["scan"]["properties"]
    assert "model" in schema["properties"]


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
    from zfscale.datasets import parts

    folder = tmp_path_factory.mktemp("job")
    parts.write(folder / "parts", count=160, shard_size=20)
    job = folder / "job.yaml"
    job.write_text(
        f"run: {folder}/whole\nmodel: zfscale:zfnet-mini\nweights: seed:0\nbatch: 8\n"
        f"images: {folder}/parts\nanalyses: {{scan: {{top_k: 2}}}}\n"
    )
    return job


def test_the_device_of_a_cluster_is_that_of_its_workers(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from zfscale.cluster import resources as capacity
    from zfscale.engine import driver

    asked: list[str] = []
    devices: list[str] = []

    def device(address: str) -> str:
        asked.append(address)
        return "cuda"

    def run(setup: Any, *_: Any) -> Summary:
        devices.append(setup.device)
        return Summary("runs/x", Counts(), 0.0)

    monkeypatch.setattr(capacity, "device", device)
    monkeypatch.setattr(driver, "run", run)
    job = ["run", str(job_file), "--set", f"run={tmp_path}/run"]
    assert exit_code(commands, [*job, "--address", "auto"]) == 0
    assert (asked, devices) == (["auto"], ["cuda"])
    # Who says it needs no cluster to find out; and this machine is asked for itself alone.
    assert exit_code(commands, [*job, "--address", "auto", "--set", "device=cpu"]) == 0
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert exit_code(commands, [*job]) == 0
    assert (asked, devices) == (["auto"], ["cuda", "cpu", "cpu"])


def test_a_run_ends_with_sums_and_verify_with_a_digest(job_file: Path) -> None:
    done = zf("run", str(job_file), "--serial", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["counts"]["ok"] == 160
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
def test_an_interrupted_run_goes_on(job_file: Path) -> None:
    run = job_file.parent / "interrupted"
    arguments = ["run", str(job_file), "--set", f"run={run}", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zfscale", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("Progressed" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "zfscale " + " ".join(arguments) in err

    again = zf(*arguments)
    assert again.returncode == 0, again.stderr
    begun = json.loads(again.stderr.splitlines()[0])
    assert begun["stage"] == "scan"
    assert 0 < begun["tasks"] < 8  # some were committed before
    whole = zf("run", str(job_file), "--serial")
    assert whole.returncode == 0, whole.stderr
    assert zf("verify", str(run)).stdout == zf("verify", str(run.parent / "whole")).stdout


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("run: a\nmodel: zfscale:cifar\nimages: x\nanalyses: {scan: {}}\nmodel: other\n")
    with pytest.raises(errors.UsageError, match=r"'model' is there twice(.|\n)*line 5"):
        load(path)
    path.write_text("run: a\nanalyses:\n  scan: {top_k: 5, top_k: 9}\n")
    with pytest.raises(errors.UsageError, match=r"'top_k' is there twice"):
        load(path)


def test_a_batch_too_large_for_the_memory_is_named(job_file: Path) -> None:
    # As many images as no machine holds; the images themselves are few.
    fresh = f"run={job_file.parent}/large"
    done = zf("run", str(job_file), "--serial", "--set", fresh, "--set", "batch=100000000000")
    assert done.returncode == 2
    assert "batch: 100000000000 images of zfscale:zfnet-mini do not fit" in done.stderr
    assert "Traceback" not in done.stderr
