"""What is sent to a cluster, what is refused before, and one real cluster from end to end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinyjobs

import zfscale
from zfscale import job
from zfscale.cli import commands
from zfscale.cli.exit import exit_code
from zfscale.cluster import submit
from zfscale.engine import resolve
from zfscale.errors import UsageError

JOB = "run: /shared/runs/x\nmodel: zfscale:zfnet\nweights: seed:0\nimages: s3://bucket/*.tar\n"
HOME = "http://127.0.0.1:8265"
AWAY = "http://cluster.example:8265"


class FakeClient:
    """Ray's client as far as it is used; keeps what was submitted, files included."""

    def __init__(self, *states: Any) -> None:
        self.states = list(states)
        self.sent: dict[str, Any] = {}
        self.files: dict[str, str] = {}

    def submit_job(self, **request: Any) -> str:
        folder = Path(request["runtime_env"]["working_dir"])
        self.sent = request
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.files = {path.relative_to(folder).as_posix(): path.read_text() for path in files}
        return "raysubmit_1"

    def get_job_info(self, job: str) -> Any:
        if job != "raysubmit_1":
            raise RuntimeError(f"Request failed with status code 404: Job {job} does not exist")
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def list_jobs(self) -> list[Any]:
        return self.states

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for chunk in ("one\n", "two\n"):
            yield chunk


def info(status: str, code: int | None = None, start: int = 1000, **metadata: str) -> Any:
    return SimpleNamespace(
        submission_id=f"raysubmit_{start}", status=SimpleNamespace(value=status), message=None,
        driver_exit_code=code, start_time=start, end_time=None, metadata=metadata,
    )  # fmt: skip


def test_the_command_is_fixed_and_quoted() -> None:
    client = FakeClient()
    nasty = "classes=/shared/$(rm -rf ~); echo 'x'"
    assert submit.submit(client, JOB, ["batch=64", nasty]) == "raysubmit_1"
    (name,) = client.files
    assert client.files[name] == JOB
    assert name == "job-" + name.removeprefix("job-").removesuffix(".yaml") + ".yaml"
    assert shlex.split(client.sent["entrypoint"]) == [
        "python", "-m", "zfscale", "run", name, "--address", "auto",
        "--set", "batch=64", "--set", nasty,
    ]  # fmt: skip


def test_options_of_run_reach_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient()
    monkeypatch.setattr(submit, "connect", lambda address, insecure: client)
    monkeypatch.chdir(tmp_path)
    Path("my job.yaml").write_text(JOB)
    typed = ["submit", "my job.yaml", "--set", "batch=64", "--address", HOME, "--insecure"]
    assert exit_code(commands, [*typed, "--replace", "scan", "--replace", "a sweep"]) == 0
    sent = shlex.split(client.sent["entrypoint"])
    assert sent[4:] == [
        *client.files, "--address", "auto", "--set", "batch=64",
        "--replace", "scan", "--replace", "a sweep",
        "--resume-with", shlex.join(["zfscale", *typed]),
    ]  # fmt: skip


def test_a_run_records_the_command_it_is_told_to_go_on_with(tmp_path: Path) -> None:
    tinyjobs.write_shards(tmp_path / "shards", 1)
    file = tmp_path / "job-1234.yaml"
    file.write_text(json.dumps(tinyjobs.spec(tmp_path / "run", tmp_path / "shards")))
    told = f"zfscale submit 'my job.yaml' --address {HOME}"
    assert exit_code(commands, ["run", str(file), "--serial", "--resume-with", told]) == 0
    assert zfscale.open(tmp_path / "run")["scan"].command == told


def test_the_same_job_has_the_same_name_and_another_has_another() -> None:
    names = []
    for text in (JOB, JOB, JOB + "batch: 8\n"):
        client = FakeClient()
        submit.submit(client, text)
        names += client.files
    assert names[0] == names[1] != names[2]


def test_nothing_travels_but_the_job_and_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = FakeClient()
    submit.submit(client, JOB)
    environment = client.sent["runtime_env"]
    assert set(environment) == {"working_dir", "py_modules", "excludes"}
    assert [Path(module).name for module in environment["py_modules"]] == ["zfscale"]
    assert "secret" not in repr(client.sent)


@pytest.mark.parametrize(
    ("model", "travels"),
    [
        ("mynet:build", {"mynet.py"}),
        ("nets.small:build", {"nets/small.py", "nets/blocks.py"}),
        ("pack:build", {"pack/__init__.py", "pack/layers.py"}),
        ("torch.nn:Identity", set()),  # installed, here as there
        ("zfscale:zfnet", set()),
        ("torchvision:squeezenet1_1", set()),
    ],
)
def test_the_module_of_a_model_travels_if_it_lies_here(
    model: str, travels: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ["mynet.py", "mynet/photograph.txt", "other.py", "nets/small.py", "nets/blocks.py"]
    here += ["pack/__init__.py", "pack/layers.py", "zfscale/__init__.py", "torchvision.py"]
    for name in here:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    monkeypatch.chdir(tmp_path)
    client = FakeClient()
    submit.submit(client, JOB, [f"model={model}"])
    (job,) = [name for name in client.files if name.endswith(".yaml")]
    assert client.files == {job: JOB} | {name: f"# {name}" for name in travels}


@pytest.mark.parametrize(
    ("key", "value"),
    [("run", "runs/x"), ("weights", "net.safetensors"), ("classes", "names.json"),
     ("images", "[/shared/a.tar, data/b.tar]"),
     ("analyses.correspondence.parts", "boxes.csv")],
)  # fmt: skip
def test_paths_that_mean_nothing_on_the_cluster_are_refused(key: str, value: str) -> None:
    client = FakeClient()
    with pytest.raises(UsageError, match=rf"{key}: .* relative"):
        submit.submit(client, JOB, [f"{key}={value}"])
    assert client.sent == {}


def test_a_wrong_job_is_refused_before_it_travels() -> None:
    with pytest.raises(UsageError, match=r"my\.yaml: bath: unknown key"):
        submit.submit(FakeClient(), JOB + "bath: 3\n", place="my.yaml")


@pytest.mark.parametrize(
    "wrong",
    ["analyses.sweep.use=[x]", "analyses={scan: {}, correspondence: {parts: 5}}",
     "analyses.scam={}", "analyses.scan.top_k=x", "analyses.gallery={use: scan}",
     "analyses.scan.top=3"],
)  # fmt: skip
def test_a_wrong_analysis_is_refused_in_the_words_of_run(wrong: str) -> None:
    with pytest.raises(UsageError) as there:
        resolve.resolve(job.parse(JOB, "job", ("device=cpu", "images=/data", wrong)))
    client = FakeClient()
    with pytest.raises(UsageError) as here:
        submit.submit(client, JOB, [wrong])
    assert str(here.value) == str(there.value)
    assert str(here.value).startswith("analyses.")
    assert client.sent == {}


@pytest.mark.parametrize(
    ("address", "insecure", "environment"),
    [
        (HOME, False, {}),
        ("http://localhost:8265", False, {}),
        (HOME, False, {"RAY_ADDRESS": HOME + "/"}),
        (AWAY, True, {}),
        (AWAY, False, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}),
        (AWAY, False, {"RAY_AUTH_MODE": "Token", "RAY_AUTH_TOKEN_PATH": __file__}),
    ],
)
def test_addresses_that_are_taken(
    address: str, insecure: bool, environment: dict[str, str]
) -> None:
    submit._check_address(address, insecure, environment)


@pytest.mark.parametrize(
    ("address", "environment", "message"),
    [
        (AWAY, {}, "RAY_AUTH_TOKEN"),
        (AWAY.replace("http", "https"), {}, "RAY_AUTH_TOKEN"),
        (AWAY, {"RAY_AUTH_TOKEN": "t"}, "RAY_AUTH_MODE=token"),  # Ray would not send it
        (AWAY, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/such"}, "RAY_AUTH_TOKEN"),
        ("http://127.0.0.1.example:8265", {}, "RAY_AUTH_TOKEN"),
        (HOME, {"RAY_ADDRESS": "auto"}, "unset RAY_ADDRESS"),
        (HOME, {"RAY_API_SERVER_ADDRESS": AWAY}, "unset RAY_API_SERVER_ADDRESS"),
        ("127.0.0.1:8265", {}, "expected the URL"),
        ("ray://127.0.0.1:10001", {}, "expected the URL"),
    ],
)
def test_addresses_that_are_refused(
    address: str, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        submit._check_address(address, False, environment)


def test_an_address_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9"):
        submit.connect("http://127.0.0.1:9")


def test_following_shows_the_log_and_waits_for_the_end() -> None:
    shown: list[str] = []
    client = FakeClient(info("RUNNING"), info("RUNNING"), info("FAILED", code=3))
    end = submit.follow(client, "raysubmit_1", shown.append, poll=0.0)
    assert shown == ["one\n", "two\n"]
    assert (end.status, end.exit_code, end.over) == ("FAILED", 3, True)


def test_only_our_jobs_are_listed_oldest_first() -> None:
    client = FakeClient(
        info("RUNNING", start=3000, zfscale_version="1"), info("RUNNING", start=2000),
        info("STOPPED", start=1000, zfscale_version="1"),
    )  # fmt: skip
    assert [state.id for state in submit.jobs(client)] == ["raysubmit_1000", "raysubmit_3000"]


def test_an_unknown_job_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="raysubmit_9"):
        submit.state(FakeClient(), "raysubmit_9")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Dashboard and environment of a Ray head on loopback, started after its documentation.

    It asks for the token in ~/.ray/auth_token since there is one; nothing else is set.
    """
    ports = free_ports(4)
    folder = Path("/tmp") / f"zfscale-test-{os.getpid()}"  # sockets need a short path
    (folder / ".ray").mkdir(parents=True)
    (folder / ".ray" / "auth_token").write_text("0123456789abcdef" * 2)
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name} | {
        "HOME": str(folder),
        "HEAD": f"127.0.0.1:{ports[0]}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The job's command is `python`: the one with our libraries.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block",
        "--node-ip-address=127.0.0.1", f"--port={ports[0]}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}",
        f"--dashboard-agent-listen-port={ports[2]}", f"--metrics-export-port={ports[3]}",
        "--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder}/ray",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{ports[1]}"
        wait_for(address)
        yield address, environment
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(address: str) -> None:
    """Until the dashboard answers; without a token it says 401."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
            raise
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


@pytest.mark.slow
def test_a_job_on_a_real_cluster(
    head: tuple[str, dict[str, str]], parts_images: Path, tmp_path: Path
) -> None:
    address, environment = head

    def zf(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zfscale", *arguments, "--address", address]
        return subprocess.run(
            command, cwd=tmp_path, env=environment | changes,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    (tmp_path / "mynet.py").write_text(
        "from zfscale.models.networks.zfnet_mini import PREPROCESSING, build as net\n"
        "def build():\n    return net(), PREPROCESSING\n"
    )
    file = job_file(tmp_path, "mynet:build", parts_images)
    done = zf("submit", str(file), "--wait", "--set", "workers=1")
    assert done.returncode == 0, done.stdout + done.stderr
    submission = done.stdout.split()[0]
    assert "60 images in = 60 ok" in done.stdout
    assert (tmp_path / "run" / "winners").is_dir()

    assert "SUCCEEDED" in zf("status", submission).stdout
    assert "60 images in" in zf("logs", submission).stdout
    assert submission in zf("list").stdout
    assert "ended before" in zf("stop", submission).stdout
    assert zf("status", "raysubmit_none").returncode == 2

    failing = zf(
        "submit",
        str(file),
        "--wait",
        "--set",
        "images=/no/such/*.tar",
        "--set",
        f"run={tmp_path}/other",
    )
    assert failing.returncode == 2, failing.stdout + failing.stderr
    assert "/no/such" in failing.stdout

    refused = zf("list", RAY_AUTH_TOKEN="f" * 32)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "refuses the one in RAY_AUTH_TOKEN" in line


@pytest.mark.slow
def test_a_run_on_a_real_cluster(
    head: tuple[str, dict[str, str]], parts_images: Path, tmp_path: Path
) -> None:
    _, environment = head
    command = [
        sys.executable, "-m", "zfscale", "run", "--address", environment["HEAD"],
        str(job_file(tmp_path, "zfscale:zfnet-mini", parts_images)), "--set", "workers=1",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "60 images in = 60 ok" in done.stdout
    environment = environment | {"RAY_AUTH_TOKEN_PATH": "/no/such"}
    refused = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in refused.stderr.splitlines()[-1]


def job_file(folder: Path, model: str, images: Path) -> Path:
    file = folder / "job.yaml"
    file.write_text(
        f"run: {folder}/run\nmodel: {model}\nweights: seed:0\n"
        f"images: {images}\nbatch: 8\nanalyses: {{scan: {{top_k: 2}}}}\n"
    )
    return file
