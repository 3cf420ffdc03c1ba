"""What cannot fit in memory is refused before any work, with sizes and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import tinyjobs

from zfscale import models
from zfscale.engine import memory, worker
from zfscale.engine.memory import bytes_there, check_memory
from zfscale.errors import UsageError

ALL = {"scan": {}, "deconvolve": {}, "occlusion": {"memory": 100}}


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, object]:
    tinyjobs.write_shards(tmp_path / "shards", 1)
    return tinyjobs.spec(tmp_path / "run", tmp_path / "shards", analyses={"scan": {}})


def test_the_limit_is_weights_and_maps_and_what_the_analysis_holds(spec) -> None:
    network = models.load("tinyjobs:build", "seed:0")
    weights = 4 * sum(each.numel() for each in network.module.state_dict().values())
    job = tinyjobs.resolved(spec)
    least = weights + 4 * network.bytes_per_image
    check_memory(network, job, least)
    with pytest.raises(UsageError, match=r"use a batch of at most 3$"):
        check_memory(network, job, least - 1)
    with pytest.raises(UsageError, match=r"use a device with more memory$"):
        check_memory(network, job, weights)
    with_blocks = tinyjobs.resolved({**spec, "analyses": ALL})
    check_memory(network, with_blocks, least + (100 << 20))
    with pytest.raises(UsageError, match=r"and 104\.9 MB for what occlusion holds at once"):
        check_memory(network, with_blocks, least + (100 << 20) - 1)


def test_it_is_refused_before_any_work(spec, monkeypatch) -> None:
    monkeypatch.setattr(memory, "bytes_there", lambda device: 3_000_000)
    done = []
    monkeypatch.setattr(worker.Worker, "run", lambda self, task: done.append(task))
    with pytest.raises(UsageError) as refused:
        tinyjobs.run({**spec, "batch": 1000})
    assert done == []
    message = str(refused.value)
    assert message.startswith("batch: 1000 images of tinyjobs:build need ")
    assert "this machine has 3.0 MB: use a batch of at most " in message


def test_a_machine_knows_its_memory(tmp_path: Path, monkeypatch) -> None:
    whole = bytes_there("cpu")
    assert whole > 1 << 28
    (tmp_path / "memory.max").write_text("1048576\n")
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "memory.max"), "/nowhere"))
    assert bytes_there("cpu") == 1 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert bytes_there("cpu") >= whole
