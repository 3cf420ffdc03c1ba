"""Peak memory of a whole job, as the number of images grows.

Each job is `zfscale run --serial` in a process of its own, which plans, reads, decodes, computes
and publishes; the kernel says how much memory it had at most.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks import _images
from benchmarks._report import Report

COUNTS = (1_000, 3_000, 10_000)
TASK = 1_000
"""Images in one tar and so in one task: about as many as a task ever has."""


def small_pictures(count: int) -> list[bytes]:
    """Different JPEG files of 32 x 32 pixels: smooth random colours."""
    files = []
    for index in range(count):
        colours = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).resize((32, 32)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def peak(job: Path) -> int:
    """Bytes that `zfscale run --serial` held at most."""
    command = [sys.executable, "-m", "zfscale", "run", str(job), "--serial", "--json"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(log.read().decode(errors="replace"))
    return usage.ru_maxrss * 1024


def run(counts: Sequence[int] = COUNTS, model: str = "zfscale:cifar") -> Report:
    peaks = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            images = _images.write(Path(folder), small_pictures(count), TASK)
            job = Path(folder, "job.yaml")
            spec = {"run": f"{folder}/run", "model": model, "weights": "seed:0", "images": images}
            job.write_text(yaml.safe_dump(spec | {"device": "cpu", "batch": 50}), "utf-8")
            peaks.append(peak(job))
    rows = [
        (f"{count:,}", f"{found / 2**20:,.0f}", f"{found / peaks[0]:.3f}")
        for count, found in zip(counts, peaks, strict=True)
    ]
    header = ("images", "peak resident set, MiB", f"of that of {counts[0]:,} images")
    note = f"{model}, scan, switches and deconvolution, pictures of 32 x 32."
    return Report(header, rows, note)
