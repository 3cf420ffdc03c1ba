"""Bytes of switches per winner against int64 indices of the full pooling maps.

The indices are what `max_pool2d(..., return_indices=True)` gives for the pools below a layer. A
record holds only the offsets that the winner's receptive field needs, one byte each.
"""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path

from benchmarks import _images
from benchmarks._report import Report
from zfscale.convnet.network import Network
from zfscale.engine import driver, resolve
from zfscale.engine.worker import Serial, load_network
from zfscale.job import Job
from zfscale.records import Layer


def run(model: str = "zfscale:zfnet", count: int = 400, k: int = 9, batch: int = 50) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        images = _images.write(Path(folder), _images.encoded(count))
        job = Job.model_validate(
            {"run": f"{folder}/run", "model": model, "weights": "seed:0", "images": [images]}
            | {"batch": batch, "device": "cpu", "analyses": {"scan": {"top_k": k}}}
        )
        resolved = resolve.resolve(job)
        driver.run(resolved, Serial, lambda event: None)
        network = load_network(resolved, "cpu")
        sizes = {layer: _sizes(network, layer, Path(job.run)) for layer in network.layers}
    rows = [_row(layer.name, layer.channels * k, *size) for layer, size in sizes.items()]
    winners = sum(layer.channels * k for layer in sizes)
    whole = [sum(layer.channels * k * size[i] for layer, size in sizes.items()) for i in range(2)]
    stored = sum(size[2] for size in sizes.values())
    rows.append(_row("all", winners, whole[0] / winners, whole[1] / winners, stored))
    header = ("layer", "winners", "int64 indices", "record", "stored", "indices / stored")
    note = f"{model}, {count:,} {_images.kind()}, k = {k}. Bytes per winner; stored: on disk."
    return Report(header, rows, note)


def _sizes(network: Network, layer: Layer, run: Path) -> tuple[int, int, int]:
    """Bytes per winner of the indices and of a record, and bytes of all records on disk."""
    pools = network.switch_shapes(layer)
    full = sum(8 * prod(network.traced.nodes[pool].shape) for pool in pools)
    record = sum(prod(shape) for shape in pools.values())
    files = (run / "switches.zarr" / layer.name).rglob("c/**/*")
    return full, record, sum(file.stat().st_size for file in files if file.is_file())


def _row(name: str, winners: int, full: float, record: float, stored: int) -> tuple[str, ...]:
    each = stored / winners
    factor = f"{full / each:,.0f}" if stored else "no pool below"
    return (name, f"{winners:,}", f"{full:,.0f}", f"{record:,.0f}", f"{each:,.0f}", factor)
