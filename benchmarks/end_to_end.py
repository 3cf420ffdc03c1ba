"""End to end from JPEG files against the slower of decoding alone and the forward pass alone.

The job reads, decodes, scans, writes and publishes as `zfscale run` does. It counts from the end
of its first task, when processes run and weights are loaded, to the end of its scan stage. The
bound is what a machine reaches that overlaps decoding and computing completely.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from benchmarks import _images
from benchmarks._decoded import forward
from benchmarks._report import Report
from benchmarks._timing import by_turns, ratio, seconds
from zfscale import collection as sources
from zfscale.cluster.pool import RayPool
from zfscale.collection.decode import decode_ahead
from zfscale.convnet.runtime import prepare
from zfscale.engine import driver, resolve
from zfscale.engine.events import Event, Progressed, StageDone
from zfscale.engine.resolve import ResolvedJob
from zfscale.engine.worker import Executor, Serial, load_network
from zfscale.job import Job

Start = Callable[[ResolvedJob], Executor]
MODELS = ("zfscale:alexnet", "zfscale:zfnet")
EXECUTORS: dict[str, Start] = {"in process": Serial, "embedded Ray": lambda job: RayPool(job, None)}


class _Scanned(Exception):
    """The scan stage is done: the rest of the job does not count."""


def job_seconds(job: Job, start: Start) -> float:
    """From the end of the first task of the scan stage to the end of the stage."""
    times: list[float] = []

    def report(event: Event) -> None:
        if isinstance(event, Progressed | StageDone) and event.stage == "scan":
            times.append(time.perf_counter())
            if isinstance(event, StageDone):
                raise _Scanned

    with tempfile.TemporaryDirectory() as folder:
        fresh = job.model_copy(update={"run": f"{folder}/run"})
        with contextlib.suppress(_Scanned):
            driver.run(resolve.resolve(fresh), start, report)
    return times[-1] - times[0]


def _measure(job: Job, rounds: int) -> tuple[str, ...]:
    resolved = resolve.resolve(job)
    prepare(resolved.threads_per_worker)
    network = load_network(resolved, "cpu")
    recipe = network.preprocessing
    indexed = [(shard, sources.index(shard)) for shard in sources.find(job.images)[1:]]
    count = sum(len(rows["position"]) for _, rows in indexed)

    def decode() -> None:
        samples = chain.from_iterable(sources.read(shard, rows) for shard, rows in indexed)
        for _ in decode_ahead(samples, recipe, resolved.decode_threads, 2 * job.batch):
            pass

    inputs = network.normalise(_images.decoded(job.batch, recipe))

    def compute() -> None:
        for _ in range(count // job.batch):
            forward(network, inputs)

    routines = {
        name: (lambda start=start: job_seconds(job, start)) for name, start in EXECUTORS.items()
    }
    routines |= {"decode": lambda: seconds(decode), "forward": lambda: seconds(compute)}
    taken = by_turns(routines, rounds)
    bound = [max(pair) for pair in zip(taken["decode"], taken["forward"], strict=True)]
    rates = [f"{count / sorted(times)[len(times) // 2]:.1f}" for times in taken.values()]
    return (*rates, *(ratio(bound, taken[name]) for name in EXECUTORS))


def run(
    names: Sequence[str] = MODELS,
    count: int = 1024,
    batch: int = 32,
    rounds: int = 3,
    shard: int = 128,
) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        # One tar more than counts: it is the first task.
        images = _images.write(Path(folder), _images.encoded(shard + count), shard)
        rows = []
        for name in names:
            job = Job.model_validate(
                {"run": f"{folder}/run", "model": name, "weights": "seed:0", "images": [images]}
                | {"batch": batch, "device": "cpu", "analyses": {"scan": {}}}
            )
            rows.append((name, *_measure(job, rounds)))
    alone = ("decode alone", "forward alone", *(f"ratio {name}" for name in EXECUTORS))
    header = ("model", *(f"{name}, images/s" for name in EXECUTORS), *alone)
    note = (
        f"{count:,} {_images.kind()} in tars of {shard}, batch {batch} (it divides the "
        f"tars, so no batch is padded), {os.cpu_count()} cores, medians of {rounds} rounds."
    )
    return Report(header, rows, note)
