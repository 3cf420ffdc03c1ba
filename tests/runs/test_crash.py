"""Whenever a writer dies, what is left is a whole prefix of its commits."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zfscale.runs import gc
from zfscale.runs import manifest as manifests
from zfscale.runs.verify import find_damage
from zfscale.storage import open_storage

WRITER = Path(__file__).with_name("crashing_writer.py")
ROOT = Path(__file__).parents[2]
GROUPS = [["01", "02"], ["03"], ["04", "05"]]
PREFIXES = [[task for group in GROUPS[:n] for task in group] for n in range(4)]


def start(mode, directory):
    command = [sys.executable, str(WRITER), mode, str(directory)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    base = tmp_path_factory.mktemp("crashes")
    with start("sweep", base) as writer:
        results = [json.loads(line) for line in writer.stdout]
    assert writer.returncode == 0
    return base, results


def test_the_sweep_covers_every_step(crashes):
    _, results = crashes
    assert [result["code"] for result in results[:-1]] == [9] * (len(results) - 1)
    assert len(results) > 50
    assert {result["acknowledged"] for result in results} == {0, 1, 2, 3, 4}


def test_a_crash_leaves_a_prefix_and_loses_nothing_acknowledged(crashes):
    for result in crashes[1]:
        assert result["tasks"] in PREFIXES
        committed = PREFIXES.index(result["tasks"])
        assert min(result["acknowledged"], 3) <= committed <= result["acknowledged"] + 1
        # A table that is published is whole.
        assert result["damage"] == []
        assert result["rows"] in (0, 3)
        assert result["state"] == "complete" or result["acknowledged"] < 4
        assert result["rows"] == 3 or result["state"] != "complete"
        assert result["record"] <= result["number"] <= result["record"] + 1


def test_the_same_job_resumes_every_crash(crashes):
    for result in crashes[1]:
        resumed = result["resumed"]
        assert resumed["tasks"] == PREFIXES[-1]
        assert resumed["damage"] == []
        assert (resumed["state"], resumed["rows"]) == ("complete", 3)
        assert resumed["record"] == resumed["number"]


def test_leftovers_of_every_crash_are_garbage(crashes):
    base, _ = crashes
    leftovers = 0
    for directory in sorted(path for path in base.iterdir() if path.is_dir()):
        storage = open_storage(str(directory))
        leftovers += len(storage.sizes()) - len(storage.list())
        gc.collect(storage)
        manifest = manifests.load(storage)
        expected = {file.path for file in manifest.files()} | {"run.json"}
        assert set(storage.sizes()) == expected | {manifests.path(manifest.number)}
    assert leftovers > 10


def test_sigkill_at_any_time(tmp_path):
    random.seed(5)
    directory = str(tmp_path / "run")
    acknowledged = 0
    for _ in range(5):
        with start("forever", directory) as writer:
            first = writer.stdout.readline()
            time.sleep(random.random() / 5)
            writer.send_signal(signal.SIGKILL)
            acknowledged = int(([first, *writer.stdout.read().split()])[-1])
        assert writer.returncode == -signal.SIGKILL
        manifest, damaged = manifests.latest(open_storage(directory))
        assert damaged == ()
        tasks = list(manifest.analyses["scan"].tasks)
        assert acknowledged <= len(tasks) <= acknowledged + 1
        assert tasks == [f"{n:06}" for n in range(len(tasks))]
        assert find_damage(open_storage(directory), manifest) == []
    assert acknowledged > 20


def test_two_writers_race_and_one_is_left(tmp_path):
    directory = str(tmp_path / "run")
    with start("forever", directory) as first:
        numbers = [first.stdout.readline()]
        with start("forever", directory) as second:
            deadline = time.monotonic() + 60
            while first.poll() is None and second.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            alive = [writer.poll() is None for writer in (first, second)]
            first.kill()
            second.kill()
            numbers += [first.stdout.read(), second.stdout.read()]
    assert alive.count(True) == 1
    acknowledged = max(map(int, "".join(numbers).split()))
    tasks = list(manifests.load(open_storage(directory)).analyses["scan"].tasks)
    assert acknowledged <= len(tasks) <= acknowledged + 1
    assert tasks == [f"{n:06}" for n in range(len(tasks))]
