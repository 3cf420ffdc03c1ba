"""A small finished run without a network: made-up winners of made-up features, stored as a job
stores them. What results and gallery read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from zfscale.analyses.deconvolve import Deconvolve
from zfscale.analyses.scan import Scan
from zfscale.analyses.scan.tables import FEATURES, IMAGES, WINNERS
from zfscale.records import (
    Array,
    Block,
    Columns,
    Counts,
    Preprocessing,
    Table,
    array_path,
    published_name,
)
from zfscale.runs import arrays, tables
from zfscale.runs import manifest as manifests
from zfscale.runs.columns import from_arrow
from zfscale.runs.ledger import Ledger, Planned
from zfscale.runs.manifest import State
from zfscale.runs.schema import arrow_type
from zfscale.storage import open_storage


@dataclass(frozen=True)
class Spec:
    """A layer to be written. `field` None: geometry unknown, so no boxes and no projections."""

    name: str
    features: int = 4
    size: int = 8
    stride: int = 4
    field: int | None = 11
    projected: bool = True


@dataclass(frozen=True)
class Picture:
    key: str
    label: int | None
    data: bytes


def png(seed: int, height: int = 40, width: int = 48) -> bytes:
    """A picture that differs everywhere: low frequencies, so that resizing keeps it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def write_run(
    folder: Path,
    layers: tuple[Spec, ...] = (Spec("conv1"), Spec("conv2", field=23, size=4, stride=8)),
    pictures: list[Picture] | None = None,
    classes: list[str] | None = None,
    k: int = 9,
    crop: int = 32,
    dead: int | None = 3,
    state: State = State.COMPLETE,
    error: str | None = None,
    model: str = "test:net",
) -> Path:
    """Write FOLDER/run and FOLDER/images; return the run. Feature `dead` of each layer is dead.

    `state` and `error` are those of the scan. Unless it is complete it has published nothing, and
    there are no `switches` and no `deconvolve`. The switches are none in any case.
    """
    run, store = folder / "run", folder / "images"
    store.mkdir(parents=True)
    if pictures is None:
        pictures = [Picture(f"picture-{i:02d}", i % 3, png(i)) for i in range(12)]
    ids = [hashlib.blake2b(p.data, digest_size=16).hexdigest() for p in pictures]
    recipe = Preprocessing(36, (crop, crop), (120.0, 110.0, 100.0), (60.0,) * 3)
    images = _images(store, pictures, ids)
    job = {"model": model, "images": [str(store)]}
    metadata = {"job": job, "preprocessing": asdict(recipe), "untraceable": None}
    Ledger.open(open_storage(str(run)), {"model": model}, {}, metadata)
    options = {"images": [str(store)], "format": None}
    add_analysis(run, "index", options=options, metadata={"classes": classes})

    add_scan(run, layers, images, k, dead, state=state, error=error)
    return run


def add_scan(
    run: Path,
    layers: tuple[Spec, ...],
    images: pa.Table | None = None,
    k: int = 9,
    dead: int | None = None,
    name: str = "scan",
    deconvolve: str | None = "deconvolve",
    state: State = State.COMPLETE,
    error: str | None = None,
) -> None:
    """Add a scan to a run, with its switches and its deconvolution, under the names given.

    `images` is its table; without it, that of the scan called `scan`. Each scan has other winners.
    """
    if images is None:
        images = pa.concat_tables(
            pq.read_table(path) for path in sorted((run / "images").rglob("*.parquet"))
        )
        images = images.drop_columns("run_id")
    accepted = images.filter(pc.equal(images["status"], "ok"))
    ids = accepted["id"].to_pylist()
    pictures = [
        Picture(key, label, b"")
        for key, label in zip(
            accepted["key"].to_pylist(), accepted["label"].to_pylist(), strict=True
        )
    ]

    def rows() -> Iterator[tuple[Table, Columns]]:
        yield IMAGES, _typed(IMAGES, images)
        for spec in layers:
            seed = len(spec.name) + spec.features + (0 if name == "scan" else len(name))
            rng = np.random.default_rng(seed)
            winners = _winners(rng, spec, pictures, ids, min(k, len(pictures)))
            yield WINNERS, _typed(WINNERS, winners)
            yield FEATURES, _typed(FEATURES, _features(rng, spec, winners, dead))

    add_analysis(
        run,
        name,
        rows(),
        kind="scan",
        options=Scan.Options(top_k=k).model_dump(mode="json"),
        needs={"index": "index"},
        metadata={"layers": [_layer(spec) for spec in layers], "images": "images"},
        counts=Counts(len(pictures) + 2, ok=len(pictures), quarantined=1, duplicate=1),
        state=state,
        error=error,
    )
    if state == State.COMPLETE and deconvolve is not None:
        switches = "switches" if name == "scan" else f"{name}-switches"
        add_analysis(run, switches, kind="switches", needs={"scan": name})
        add_analysis(
            run,
            deconvolve,
            kind="deconvolve",
            blocks=(block for spec in layers for block in _projections(spec, k)),
            options=Deconvolve.Options().model_dump(mode="json"),
            needs={"scan": name, "switches": switches},
        )


def add_analysis(
    run: Path,
    name: str,
    rows: Iterable[tuple[Table, Columns]] = (),
    blocks: Iterable[Block] = (),
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    needs: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    counts: Counts | None = None,
    state: State = State.COMPLETE,
    error: str | None = None,
) -> None:
    """Add an analysis to a run, or put another in its place: it is published from no task at all.

    Tables and arrays are called as the `kind`, which is the `name` by default, calls them; they
    are published under the names that an analysis called `name` has. Only what is complete
    publishes.
    """
    kind, needs = kind or name, dict(needs or {})
    storage = open_storage(str(run))
    before = manifests.load(storage)
    planned = Planned(kind, options or {}, {}, needs, metadata or {})
    ledger = Ledger.open(storage, before.fingerprint, {name: planned}, replaced=[name])
    if state != State.PLANNED:
        analyses = ledger.manifest.analyses
        ledger.start(name, {other: analyses[other].results for other in needs.values()})
    if state == State.COMPLETE:
        files = {}
        for block in blocks:
            array = replace(block.array, path=array_path(block.array.path, kind, name))
            shard = arrays.write(storage, replace(block, array=array))
            written = (*arrays.create(storage, array), *shard)
            files |= {file.path: file for file in written}
        run_id = ledger.manifest.run_id
        with tables.writing(storage, run_id, lambda t: published_name(t, kind, name)) as writer:
            for table, columns in rows:
                writer.add(table, columns)
        final = [*files.values(), *writer.files]
        results = hashlib.sha256("".join(file.sha256 for file in final).encode()).hexdigest()
        ledger.publish(name, final, results, counts or Counts())
    if state not in (State.PLANNED, State.RUNNING):
        ledger.end(name, state, 1.5, error)


def columns_of(table: Table, rows: list[dict[str, Any]]) -> Columns:
    """Rows as the columns of a table, with the types that it declares."""
    columns = {}
    for column in table.columns:
        values = pa.array([row[column.name] for row in rows], arrow_type(column))
        columns[column.name] = from_arrow(values, column.nullable)
    return columns


def _layer(spec: Spec) -> dict:
    field = None if spec.field is None else [spec.field] * 2
    stride = None if spec.field is None else [spec.stride] * 2
    size = {"height": spec.size, "width": spec.size, "stride": stride, "field": field}
    return {"name": spec.name, "node": None, "channels": spec.features, **size}


def _images(store: Path, pictures: list[Picture], ids: list[str]) -> pa.Table:
    rows = []
    for index, (picture, identity) in enumerate(zip(pictures, ids, strict=True)):
        path = store / f"{index:04d}.bin"
        path.write_bytes(b"head" + picture.data)
        rows.append({
            "id": identity, "key": picture.key, "uri": str(path), "offset": 4,
            "length": len(picture.data), "row_group": None, "row": None, "label": picture.label,
            "width": 48, "height": 40, "predicted": 0, "probability": 0.5,
            "true_class_rank": None if picture.label is None else index % 7,
            "status": "ok", "reason": None,
        })  # fmt: skip
    nowhere = {
        "uri": "/~nowhere",
        "offset": 0,
        "length": 1,
        "true_class_rank": None,
        "predicted": None,
    }
    rows.append(rows[0] | nowhere | {"key": "again", "status": "duplicate"})
    bad = {"key": "bad", "id": None, "status": "quarantined", "reason": "not_an_image"}
    rows.append(rows[0] | nowhere | bad)
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})


def _winners(rng, spec: Spec, pictures: list[Picture], ids: list[str], k: int) -> pa.Table:
    rows = []
    for feature in range(spec.features):
        chosen = rng.choice(len(pictures), k, replace=False)
        scores = np.sort(rng.gamma(2, 4, k).astype(np.float32))[::-1]
        for rank, index in enumerate(chosen.tolist()):
            y, x = rng.integers(0, spec.size, 2).tolist()
            y0, x0 = y * spec.stride - 3, x * spec.stride - 3
            field = spec.field
            rows.append({
                "layer": spec.name, "feature": feature, "rank": rank, "score": float(scores[rank]),
                "image_id": ids[index], "key": pictures[index].key, "y": y, "x": x,
                "y0": None if field is None else y0, "x0": None if field is None else x0,
                "y1": None if field is None else y0 + field,
                "x1": None if field is None else x0 + field,
                "label": pictures[index].label,
            })  # fmt: skip
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})


def _features(rng, spec: Spec, winners: pa.Table, dead: int | None) -> pa.Table:
    scores = np.asarray(winners["score"]).reshape(spec.features, -1)
    number = np.arange(spec.features)
    labels = [label for label in set(winners["label"].to_pylist()) if label is not None]
    top = [rng.choice(labels, min(5, len(labels)), replace=False).tolist() for _ in number]
    selective = rng.beta(2, 3, spec.features)
    return pa.table(
        {
            "layer": [spec.name] * spec.features,
            "feature": number,
            "max": np.where(number == dead, 0, scores[:, 0]).astype(np.float32),
            "mean": scores.mean(1).astype(np.float64),
            "std": scores.std(1).astype(np.float64),
            "fraction_active": np.where(number == dead, 0, rng.beta(2, 2, spec.features)),
            "dead": number == dead,
            "selectivity": [
                None if i == dead or not labels else float(selective[i]) for i in number
            ],
            "top_class": pa.array([best[0] if best else None for best in top], pa.int64()),
            "top_classes": pa.array(top, pa.list_(pa.int64())),
        }
    )


def _projections(spec: Spec, k: int) -> Iterator[Block]:
    """Oriented waves, all different; none where there is no geometry."""
    if not spec.projected or spec.field is None:
        return
    shape = (spec.features, k, spec.field, spec.field, 3)
    array = Array(f"projections.zarr/{spec.name}", shape, "float32", min(spec.features, 16), 0.0)
    rng = np.random.default_rng(spec.features)
    y, x = np.indices((spec.field, spec.field)) / spec.field - 0.5
    window = np.exp(-6 * (y * y + x * x))[..., None]
    for start in range(0, spec.features, array.shard):
        count = min(array.shard, spec.features - start)
        angle = rng.uniform(0, 3.14, (count, k, 1, 1))
        wave = np.sin(14 * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
        data = wave * window * rng.normal(0.5, 0.5, (count, k, 1, 1, 3))
        yield Block(array, start, data.astype(np.float32))


def _typed(table: Table, rows: pa.Table) -> Columns:
    """Types as the table says, for a column of nothing but nulls has none."""
    columns = {}
    for column in table.columns:
        values = rows[column.name]
        if not column.type.startswith("list"):
            values = values.cast(pa.type_for_alias(column.type))
        columns[column.name] = from_arrow(values, column.nullable)
    return columns
