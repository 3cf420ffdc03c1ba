"""The main job on embedded Ray: one digest for any number of workers, also when one is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from zfscale import job
from zfscale.analyses.occlusion import analysis as occlusion
from zfscale.cluster.pool import RayPool
from zfscale.datasets import parts
from zfscale.engine import driver, resolve
from zfscale.engine.events import Event, StageBegun
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.worker import Serial, Worker
from zfscale.records import File
from zfscale.runs import manifest
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

pytestmark = pytest.mark.usefixtures("shared_ray")

SHARDS = 6
FEW = {"vertical": [3], "scale": [1.2], "rotation": [90]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small shards, so that several workers have something to do."""
    folder = tmp_path_factory.mktemp("shards")
    parts.write(str(folder), count=10 * SHARDS, seed=4, shard_size=10)
    return folder


def _run(run: Path, shards: Path, executor) -> tuple[str, dict[str, File]]:
    """The digest of the results and the final files, byte by byte.

    Every image of the occlusion is a task, so that several workers have something to do.
    """
    spec = {"run": str(run), "model": "zfscale:zfnet-mini", "weights": "seed:0", "batch": 8}
    some = {"images": {"sample": 12}}
    explained = {"occlusion": some | {"size": 40, "stride": 30}, "invariance": some | FEW}
    analysed = {"scan": {"top_k": 3}, "deconvolve": {}, **explained}
    spec |= {"images": str(shards), "analyses": analysed | {"correspondence": some | {"draws": 1}}}
    told: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(occlusion.Occlusion, "task_work", 1e10)
        driver.run(resolve.resolve(job.Job.model_validate(spec)), executor, told.append)
    tasks = {event.stage: event.tasks for event in told if isinstance(event, StageBegun)}
    assert tasks["occlusion"] == 12
    storage = open_storage(str(run))
    state = manifest.load(storage)
    final = {f.path: f for f in state.files() if not f.path.startswith("segments/")}
    assert {path.partition("/")[0] for path in final} == {
        *("images", "features", "winners", "switches.zarr", "projections.zarr"),
        *("occlusion", "occlusion_images", "occlusion_projections", "invariance"),
        *("correspondence", "correspondence_images"),
    }
    return digest(storage), final


@pytest.fixture(scope="module")
def serial(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, File]]:
    """The results without Ray."""
    return _run(tmp_path_factory.mktemp("serial") / "run", shards, Serial)


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_any_number_of_workers_gives_one_digest(workers, shards, serial, tmp_path) -> None:
    assert _run(tmp_path / "run", shards, lambda job: RayPool(job, workers)) == serial


def test_a_killed_worker_changes_nothing(shards, serial, tmp_path) -> None:
    marker = tmp_path / "killed"

    def mortal(job: ResolvedJob) -> Worker:
        """A worker whose process dies in the middle of its second task, once."""

        class Mortal(Worker):
            done = 0

            def _publish(self, *arguments):
                files = super()._publish(*arguments)
                self.done += 1
                if self.done == 2 and not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)  # published, but not yet heard
                return files

        return Mortal(job)

    found = _run(tmp_path / "run", shards, lambda setup: RayPool(setup, 2, factory=mortal))
    assert marker.exists()
    assert found == serial
