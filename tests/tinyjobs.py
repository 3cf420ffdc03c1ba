"""Jobs that take a second: a network of a few weights, and tars of a few images each.

`build` is the network, for `model: tinyjobs:build`; `spec` the keys of a job on it, `run` carries
one out in this process and gives the digest of its run.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import badfiles
from torch import nn

from zfscale.engine import driver, resolve
from zfscale.engine.events import Event
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.worker import Executor, Serial
from zfscale.job import Job
from zfscale.records import Failure, Preprocessing, Receipt, Task
from zfscale.runs.digest import digest
from zfscale.storage import open_storage

PER_SHARD = 4


def build() -> tuple[nn.Module, Preprocessing]:
    """Two convolutions with a max pool between them, for 16 x 16 pixels and five classes."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 4, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(4, 6, 3),
        relu2=nn.ReLU(),
        mean=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(6, 5),
    )
    return nn.Sequential(layers), Preprocessing(18, (16, 16), (127.0,) * 3, (64.0,) * 3)


def image(seed: int) -> bytes:
    """A small image that no other seed has."""
    return badfiles.encode(badfiles.picture(seed, (22, 20)), "PNG")


def write_tar(path: Path, seeds: Iterable[int]) -> None:
    """A shard of images, one for each seed, with a class."""
    with tarfile.open(path, "w") as archive:
        for seed in seeds:
            for suffix, data in (("png", image(seed)), ("cls", str(seed % 5).encode())):
                member = tarfile.TarInfo(f"{seed:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_shards(folder: Path, count: int = 5) -> None:
    """Tars of four images each, all different."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        seeds = range(number * PER_SHARD, (number + 1) * PER_SHARD)
        write_tar(folder / f"{number}.tar", seeds)


def spec(run: Path, shards: Path, **changes: Any) -> dict[str, Any]:
    """A scan and its projections over the tars of a folder."""
    return {
        "run": str(run),
        "model": "tinyjobs:build",
        "weights": "seed:0",
        "images": [str(path) for path in sorted(shards.glob("*.tar"))],
        "batch": 4,
        "analyses": {"scan": {"top_k": 3}, "deconvolve": {}},
        **changes,
    }


def resolved(keys: dict[str, Any], *replaced: str) -> ResolvedJob:
    """A job with nothing left out."""
    return resolve.resolve(Job.model_validate(keys), replaced=replaced)


def run(
    keys: dict[str, Any],
    executor: Callable[[ResolvedJob], Executor] = Serial,
    *replaced: str,
    events: list[Event] | None = None,
) -> str:
    """Carry out a job and give the digest of its run; `events` takes what it reports."""
    report = (lambda event: None) if events is None else events.append
    driver.run(resolved(keys, *replaced), executor, report)
    return digest(open_storage(str(keys["run"])))


def command(keys: dict[str, Any], path: Path, *options: str) -> list[str]:
    """The command line of a job, written to a file."""
    path.write_text(json.dumps(keys))  # YAML holds JSON
    return [sys.executable, "-m", "zfscale", "run", str(path), *options]


class Counting(Serial):
    """Remembers in `given` the tasks that workers got."""

    given: list[Task]

    def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
        """Do them."""
        for task in tasks:
            type(self).given.append(task)
            yield self._worker.run(task)


def counting() -> type[Counting]:
    """A class of executor with a list of its own."""
    return type("Counting", (Counting,), {"given": []})


def stopping(analysis: str, after: int = 0) -> type[Serial]:
    """An executor that meets Ctrl-C when it has done so many tasks of an analysis."""

    class Stopping(Serial):
        def execute(self, tasks: Iterable[Task]) -> Iterator[Receipt | Failure]:
            for number, task in enumerate(tasks):
                if task.analysis == analysis and number == after:
                    raise KeyboardInterrupt
                yield self._worker.run(task)

    return Stopping


def no_work(_: ResolvedJob) -> Executor:
    """Instead of an executor, where nothing may be left to do."""
    raise AssertionError("a worker was started for nothing")
