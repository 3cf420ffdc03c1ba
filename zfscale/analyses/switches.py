"""switches: read each winning image of a scan once more and store its pooling switches.

Late materialisation: the scan stores none, since only winners need them. The network
must give the recorded scores again, else the results of the scan cannot be trusted.
Switches: Zeiler & Fergus (ECCV 2014), section 2.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zfscale.analyses.scan.tables import WINNERS
from zfscale.analysis import Analysis, Batch, Context, NoOptions, Output, View
from zfscale.convnet.deconvolution.switches import ABSENT, crop
from zfscale.convnet.network import Network
from zfscale.errors import IntegrityError, UnsupportedOperation
from zfscale.records import Array, Block, Columns, Image, ImageList, Layer, Task

TASK_IMAGES = 512
"""Images in one task, about."""
TASK_BYTES = 256 << 20
"""Switches that one task may hold in memory, unless a single batch has more."""
SHARD_BYTES = 64 << 20
"""Switches in one shard of an array, before compression."""
TOLERANCE = 1e-5
"""Largest accepted difference between the recorded score and the score that the network gives
again, relative to the largest activation of the layer."""


@dataclass(frozen=True)
class WinnerPositions:
    """The winners of one layer whose images belong to one batch or task; all arrays are (n,).

    `image` is the position of the image in the task, or its row in the batch; the other fields are
    the columns of the table `winners`.
    """

    image: NDArray[np.int64]
    feature: NDArray[np.int64]
    rank: NDArray[np.int64]
    score: NDArray[np.float32]
    y: NDArray[np.int64]
    x: NDArray[np.int64]

    def of(self, row: Mapping[int, int]) -> WinnerPositions:
        """Those whose images are in `row`: their position in the task to their row in the batch."""
        in_batch = np.array([image in row for image in self.image.tolist()], bool)
        columns = {field.name: getattr(self, field.name)[in_batch] for field in fields(self)}
        columns["image"] = np.array([row[image] for image in columns["image"].tolist()], np.int64)
        return WinnerPositions(**columns)


class Switches(Analysis[NoOptions]):
    """The switches of the winners of a scan, where its network has max pools."""

    kind = "switches"
    needs = ("scan",)

    def plan(self, view: View) -> Sequence[Task]:
        """Winning images in the order of the collection, in tasks that fit in memory.

        Without a layer that has a max pool below it there is nothing to record, and no task.
        """
        shapes = {layer.name: _shapes(view.network, layer) for layer in _layers(view)}
        size = {name: _record_bytes(pools) for name, pools in shapes.items() if pools}
        winners = view.table("scan", WINNERS)
        places: dict[str, list[int]] = defaultdict(list)
        for row, image_id in enumerate(winners["image_id"]):
            if winners["layer"][row] in size:
                places[image_id].append(row)
        tasks: list[Task] = []
        group: list[Image] = []
        held = 0
        for image in view.images(sorted(places)):
            needed = sum(size[winners["layer"][row]] for row in places[image.id])
            full = held + needed > TASK_BYTES or len(group) >= TASK_IMAGES
            if full and group and len(group) % view.batch == 0:
                tasks.append(self.task(*_work(group, places, winners)))
                group, held = [], 0
            group.append(image)
            held += needed
        return [*tasks, self.task(*_work(group, places, winners))] if group else tasks

    def arrays(self, view: View) -> Sequence[Array]:
        """One array for every layer and pool below it: (features, k, channels, h, w)."""
        ranks = view.table("scan", WINNERS)["rank"]
        if not len(ranks):
            return []
        return [
            _array(layer, pool, shape, int(ranks.max()) + 1)
            for layer in _layers(view)
            for pool, shape in _shapes(view.network, layer).items()
        ]

    def run(self, context: Context, task: Task) -> Output:
        """Forward the winners of one task, check their scores, cut out their switches."""
        layers = [context.network.layer(name) for name in task.payload["winners"]]
        wins = {name: _from_json(rows) for name, rows in task.payload["winners"].items()}
        images = task.images.images if isinstance(task.images, ImageList) else ()
        at = {image.id: position for position, image in enumerate(images)}
        parts: list[Columns] = []
        read: set[int] = set()
        for batch in context.batches():
            rows = {at[image.id]: row for row, image in enumerate(batch.images)}
            read |= rows.keys()
            in_batch = {name: winners.of(rows) for name, winners in wins.items()}
            parts += _records(context.network, layers, batch, in_batch)
        missing = [image for position, image in enumerate(images) if position not in read]
        if missing:
            raise IntegrityError(
                f"{len(missing)} winning images can no longer be read as they were scanned, e.g. "
                f"{missing[0].key} in {missing[0].ref.uri}: restore them, or scan into a new run"
            )
        return Output({"switches": _sorted(parts)} if parts else {})

    def publish(self, view: View, tasks: Iterable[Task]) -> Iterator[Block]:
        """Gather the records by feature, one shard of an array at a time."""
        done = view.done
        for array in self.arrays(view):
            _, layer, pool = array.path.split("/")
            for start in range(0, array.shape[0], array.shard):
                stop = min(start + array.shard, array.shape[0])
                data = np.full((stop - start, *array.shape[1:]), ABSENT, np.uint8)
                for task in tasks:
                    rows = done[task.id]("switches", layer=layer, pool=pool, feature=(start, stop))
                    places = zip(rows["feature"], rows["rank"], rows["record"], strict=True)
                    for feature, rank, record in places:
                        values = np.frombuffer(record, np.uint8)
                        data[feature - start, rank] = values.reshape(array.shape[2:])
                yield Block(array, start, data)


def _layers(view: View) -> list[Layer]:
    return [view.network.layer(name) for name in view.layers]


def _work(
    images: Sequence[Image], places: Mapping[str, list[int]], winners: Columns
) -> tuple[ImageList, dict[str, Any]]:
    """What a task reads, and the places that these images won by layer."""
    names = ("feature", "rank", "score", "y", "x")
    layers: dict[str, list[list[Any]]] = defaultdict(list)
    for position, image in enumerate(images):
        for row in places[image.id]:
            values = [winners[name][row].item() for name in names]
            layers[winners["layer"][row]].append([position, *values])
    return ImageList(tuple(images)), {"winners": dict(layers)}


def _from_json(rows: Sequence[Sequence[Any]]) -> WinnerPositions:
    image, feature, rank, score, y, x = zip(*rows, strict=True)
    whole = (np.array(values, np.int64) for values in (image, feature, rank, y, x))
    image_, feature_, rank_, y_, x_ = whole
    return WinnerPositions(image_, feature_, rank_, np.array(score, np.float32), y_, x_)


def _shapes(network: Network, layer: Layer) -> dict[str, tuple[int, int, int]]:
    """Shapes of the records of a layer; none where the network cannot be deconvolved."""
    try:
        return network.switch_shapes(layer)
    except UnsupportedOperation:
        return {}  # the scan goes on; `deconvolve` says which operation is in the way


def _record_bytes(pools: Mapping[str, tuple[int, int, int]]) -> int:
    return sum(int(np.prod(shape)) for shape in pools.values())


def _array(layer: Layer, pool: str, shape: tuple[int, int, int], k: int) -> Array:
    shard = max(1, min(layer.channels, SHARD_BYTES // (k * int(np.prod(shape)))))
    return Array(
        path=f"switches.zarr/{layer.name}/{pool}",
        shape=(layer.channels, k, *shape),
        dtype="uint8",
        shard=shard,
        fill=ABSENT,
        axes=("channel", "y", "x"),
        meaning="offset of the maximum in its pooling window, ky * kernel width + kx; 255 outside",
    )


def _records(
    network: Network, layers: Sequence[Layer], batch: Batch, wins: Mapping[str, WinnerPositions]
) -> list[Columns]:
    """One forward pass: check the scores, cut the switches of the winners, by layer and pool."""
    maps: dict[str, NDArray[np.uint8]] = {}

    def check(name: str, activations: torch.Tensor) -> None:
        _check(name, activations, wins[name])

    def keep(pool: str, switches: torch.Tensor) -> None:
        maps[pool] = switches.cpu().numpy()

    layers = [layer for layer in layers if layer.name in wins]
    pools = list(dict.fromkeys(pool for layer in layers for pool in _shapes(network, layer)))
    network.forward(batch.pixels, layers, check, pools, keep)
    parts = []
    for layer in layers:
        won = wins[layer.name]
        places = list(zip(won.image.tolist(), won.y.tolist(), won.x.tolist(), strict=True))
        for pool in _shapes(network, layer):
            window = network.pool_windows(layer)[pool]
            crops = [crop(maps[pool][image], window, y, x) for image, y, x in places]
            parts.append(_columns(layer.name, pool, won, crops))
    return parts


def _check(layer: str, activations: torch.Tensor, won: WinnerPositions) -> None:
    """Raise IntegrityError where the network does not give the recorded scores again."""
    place = (torch.from_numpy(v) for v in (won.image, won.feature, won.y, won.x))
    scores = activations[tuple(v.to(activations.device) for v in place)].float().cpu().numpy()
    scale = max(float(activations.abs().max()), float(np.abs(won.score).max(initial=0)))
    wrong = np.flatnonzero(np.abs(scores - won.score) > TOLERANCE * scale)
    if len(wrong):
        at = wrong[0]
        raise IntegrityError(
            f"layer {layer}, feature {won.feature[at]}: the scan recorded a score of "
            f"{won.score[at]:.8g}, the network now gives {scores[at]:.8g} for the same image; the "
            "weights changed since the scan, this machine rounds differently, or the output of the "
            "network for an image is random or depends on the other images of its batch"
        )


def _columns(
    layer: str, pool: str, won: WinnerPositions, crops: Sequence[NDArray[np.uint8]]
) -> Columns:
    record = np.empty(len(crops), dtype=object)
    record[:] = [values.tobytes() for values in crops]
    return {
        "layer": np.full(len(crops), layer, dtype=object),
        "pool": np.full(len(crops), pool, dtype=object),
        "feature": won.feature,
        "rank": won.rank,
        "record": record,
    }


def _sorted(parts: Sequence[Columns]) -> Columns:
    """One table in the order in which records are gathered."""
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    keys = (rows["rank"], rows["feature"], rows["pool"].astype(str), rows["layer"].astype(str))
    order = np.lexsort(keys)
    return {name: values[order] for name, values in rows.items()}
