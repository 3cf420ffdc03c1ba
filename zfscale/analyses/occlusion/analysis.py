"""occlusion: which parts of an image the features and the classifier look at.

Zeiler & Fergus (ECCV 2014), section 4.2 and Figure 7: a grey square moves over the image, and for
each of its positions the total activation of the strongest feature map of a layer, the
probability of the true class and the most probable class are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, Field, field_validator
from torch.utils.flop_counter import FlopCounterMode

from zfscale.analyses.occlusion.tables import (
    FEATURES,
    IMAGES,
    POSITIONS,
    PROJECTIONS,
    baseline_fields,
    drop_images,
    extra_features,
    incomplete,
    positions,
    receptive_field,
    target_class,
)
from zfscale.analyses.shared.images import DEFAULT, DESCRIPTION, Choice, all_batches, groups
from zfscale.analyses.shared.options import Colour
from zfscale.analysis import Analysis, Context, Output, View
from zfscale.convnet.deconvolution.deconvnet import Deconvnet, project
from zfscale.convnet.defaults import last_convolution
from zfscale.convnet.incremental.inference import Grid
from zfscale.convnet.incremental.occlusion import (
    Baseline,
    Occluder,
    colour,
    grid,
    make_occluder,
    occlusion_sensitivity,
)
from zfscale.convnet.network import Network
from zfscale.errors import UnsupportedOperation, UsageError
from zfscale.records import (
    Columns,
    Image,
    Layer,
    Reason,
    Table,
    Task,
    concatenate,
    to_columns,
)

LEAST_WORK = 1.5e9
"""What a position costs at least, given as multiply-adds: a small network does no better."""
NAMES = {
    POSITIONS: "positions",
    IMAGES: "images",
    FEATURES: "features",
    PROJECTIONS: "projections",
}
"""Tables of a task."""
ONCE = IMAGES, PROJECTIONS
"""Tables that say what an image is like without an occluder."""

Part = Annotated[float, Field(gt=0, lt=1)]
Pixels = Annotated[int, Field(strict=True, ge=1)]
Length = Pixels | Part


class Options(BaseModel, frozen=True, extra="forbid"):
    """Options of `occlusion` in a job file."""

    images: Choice = Field(default=DEFAULT, description=DESCRIPTION)
    size: Length | tuple[Length, Length] = Field(
        default=0.15,
        description="Side of the occluder, or its height and width: pixels of the network's "
        "input, or a fraction of it.",
    )
    stride: Length | tuple[Length, Length] = Field(
        default=0.035, description="Distance of positions, down and across, given as the size is."
    )
    value: Colour = Field(
        default="mean",
        description="Colour of the occluder: mean, which the network sees as zero, or [R, G, B].",
    )
    layer: str | None = Field(
        default=None, description="Layer that is watched; left out, the last convolution."
    )
    features: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Further features of the layer to watch beside the strongest."
    )

    classify: bool = Field(
        default=True, description="Also the classes; without, nothing above the layer is computed."
    )
    memory: int = Field(
        default=512, ge=16, description="Memory for the changes of a block of positions, in MiB."
    )

    @field_validator("features")
    @classmethod
    def _each_once(cls, features: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(features)) < len(features):
            raise ValueError("name each feature once")
        return features


class _Ready(NamedTuple):
    """What takes time to make for a network: `deconvnet` is None where it cannot be passed."""

    network: Network
    occluder: Occluder
    deconvnet: Deconvnet | None


class Occlusion(Analysis[Options]):
    """An occluder at every position of a grid, over images and ranges of positions."""

    kind = "occlusion"
    Options = Options
    needs = ("scan",)

    _made: _Ready | None = None
    task_work: ClassVar[float] = 5e12
    """Multiply-adds in a task if the network were run on each occluded image: some ten seconds."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made ready for the network of this process."""
        return self.__dict__ | {"_made": None}

    @property
    def tables(self) -> tuple[Table, ...]:
        """Tables of positions, of images, of further features if any, and of projections."""
        extra = (FEATURES,) if self.options.features else ()
        return (POSITIONS, IMAGES, *extra, PROJECTIONS)

    def memory(self, network: Network) -> int:
        """The changes of a block of positions."""
        return self.options.memory << 20

    def check(self, view: View) -> None:
        """Raises UsageError for an unknown layer or feature, or an occluder beyond the image."""
        layer = self._layer(view.network)
        beyond = [feature for feature in self.options.features if feature >= layer.channels]
        if beyond:
            raise UsageError(
                f"analyses.{self.name}.features: {layer.name} has no feature {beyond[0]}; it has "
                f"0 to {layer.channels - 1}"
            )
        crop = view.network.preprocessing.crop
        height, width = self._size(crop)
        if height >= crop[0] and width >= crop[1]:
            raise UsageError(
                f"analyses.{self.name}.size: an occluder of {height} x {width} pixels covers the "
                f"whole input of {crop[0]} x {crop[1]}; take a smaller one"
            )
        places = self._grid(view.network)
        _, why = make_occluder(
            view.network, layer, places, torch.zeros(3), self.options.classify, 1
        )
        if why is not None:
            view.warn(f"{self.name} runs the whole network on every occluded image: {why}")
            return  # what is in the way above is most often in the way below too
        _, why = _deconvnet(view.network, layer)
        if why is not None:
            view.warn(f"{self.name} cannot project the strongest units back to pixels: {why}")

    def plan(self, view: View) -> Iterable[Task]:
        """A few images a task, or a part of the positions of one image where these are many."""
        places = self._grid(view.network)
        each = max(LEAST_WORK, _multiply_adds(view.network))
        work = each * len(places.rows) * len(places.columns)
        parts = min(len(places.rows), max(1, math.ceil(work / (4 * self.task_work))))
        step = math.ceil(len(places.rows) / parts)
        rows = [
            (start, min(start + step, len(places.rows)))
            for start in range(0, len(places.rows), step)
        ]
        size = max(1, int(self.task_work / work))
        tasks = (
            self.task(images, {"rows": part})
            for images in groups(view, self.options.images, size)
            for part in rows
        )
        return tasks if self.options.images == "all" else list(tasks)

    def run(self, context: Context, task: Task) -> Output:
        """Move the occluder over the images of one task."""
        kept: dict[Table, list[Columns]] = {table: [] for table in NAMES}
        rows: tuple[int, int] = tuple(task.payload["rows"])
        for batch in all_batches(context, task):
            normalised = context.network.normalise(batch.pixels)
            for number, image in enumerate(batch.images):
                tables = self._one(context.network, image, normalised[number : number + 1], rows)
                if tables is None:
                    context.quarantine(image, Reason.NON_FINITE)
                    continue
                for table, parts in tables.items():
                    kept[table].extend(parts)
        return Output(
            {
                NAMES[table]: concatenate(parts) if parts else to_columns(table.columns, [])
                for table, parts in kept.items()
            }
        )

    def publish(self, view: View, tasks: Iterable[Task]) -> Iterator[tuple[Table, Columns]]:
        """The rows of all tasks."""
        done = view.done
        lost = incomplete((t.payload["rows"][0], done[t.id]("images")) for t in tasks)
        for table in self.tables:
            # Each part of an image says what the whole is like: one of them is enough.
            for task in tasks:
                if table not in ONCE or task.payload["rows"][0] == 0:
                    yield table, drop_images(done[task.id](NAMES[table]), lost)

    def _one(
        self, network: Network, image: Image, normalised: torch.Tensor, rows: tuple[int, int]
    ) -> dict[Table, Sequence[Columns]] | None:
        """Rows of all tables for one image; None if what the network gives is not finite."""
        ready = self._ready(network)
        baseline = ready.occluder.set_image(normalised)
        if not baseline.finite:
            return None
        target = target_class(image, baseline)
        extra = self.options.features
        features = (baseline.strongest[0], *extra)
        sensitivity = occlusion_sensitivity(ready.occluder, features, target or 0, rows)
        if not sensitivity.finite:
            return None
        totals = dict(zip(extra, baseline.totals(extra), strict=True))
        places = ready.occluder.places
        image_row = self._image_row(network, image, baseline, target)
        tables: dict[Table, Sequence[Columns]] = {
            POSITIONS: [positions(image, places, rows, sensitivity)],
            IMAGES: [to_columns(IMAGES.columns, [image_row])],
            FEATURES: extra_features(image, places, rows, sensitivity, totals),
        }
        if ready.deconvnet is not None and rows[0] == 0:
            unit, activation = baseline.strongest, float(baseline.maps[baseline.strongest])
            projection = project(network, ready.deconvnet, normalised, unit, activation)
            layer, pixels = self._layer(network), projection.pixels
            unit_of_image = (image.id, image.key, layer.name, unit[0])
            row = (*unit_of_image, *projection[:2], *pixels.shape[:2], pixels.ravel())
            tables[PROJECTIONS] = [to_columns(PROJECTIONS.columns, [row])]
        return tables

    def _image_row(
        self, network: Network, image: Image, baseline: Baseline, target: int | None
    ) -> list[Any]:
        """A row of `occlusion_images`."""
        layer, crop = self._layer(network), network.preprocessing.crop
        occluder = self._ready(network).occluder
        fields = baseline_fields(baseline, target) | receptive_field(network, layer, baseline)
        fields |= {
            "layer": layer.name,
            "image_id": image.id,
            "key": image.key,
            "label": image.label,
        }
        fields |= dict(zip(("height", "width"), self._size(crop), strict=True))
        fields |= dict(zip(("stride_y", "stride_x"), self._stride(crop), strict=True))
        fields |= {"rows": len(occluder.places.rows), "columns": len(occluder.places.columns)}
        fields |= {"method": occluder.method}
        return [fields[column.name] for column in IMAGES.columns]

    def _ready(self, network: Network) -> _Ready:
        """What is made once for a network: it lays out all weights anew."""
        if self._made is None or self._made.network is not network:
            options = self.options
            value = colour(network, options.value)
            layer, places = self._layer(network), self._grid(network)
            memory = options.memory << 20
            occluder, _ = make_occluder(network, layer, places, value, options.classify, memory)
            self._made = _Ready(network, occluder, _deconvnet(network, layer)[0])
        return self._made

    def _layer(self, network: Network) -> Layer:
        name = self.options.layer
        return last_convolution(network) if name is None else network.layer(name)

    def _grid(self, network: Network) -> Grid:
        crop = network.preprocessing.crop
        return grid(crop, self._size(crop), self._stride(crop))

    def _size(self, crop: tuple[int, int]) -> tuple[int, int]:
        return _pixels(self.options.size, crop)

    def _stride(self, crop: tuple[int, int]) -> tuple[int, int]:
        return _pixels(self.options.stride, crop)


def _pixels(
    given: int | float | tuple[int | float, int | float], crop: tuple[int, int]
) -> tuple[int, int]:
    """Height and width in pixels; a fraction is one of the crop."""
    pair = given if isinstance(given, tuple) else (given, given)
    height, width = (
        max(1, round(length * whole)) if isinstance(length, float) else length
        for length, whole in zip(pair, crop, strict=True)
    )
    return height, width


def _deconvnet(network: Network, layer: Layer) -> tuple[Deconvnet | None, str | None]:
    """The deconvnet of a layer, or why there is none."""
    try:
        return Deconvnet.of(network, layer), None
    except UnsupportedOperation as error:
        return None, str(error)


def _multiply_adds(network: Network) -> float:
    """Those of one image, counted while the network runs on one; at least one."""
    image = torch.zeros(1, 3, *network.preprocessing.crop, device=network.device)
    with FlopCounterMode(display=False) as counter:
        network.run(image)
    return max(1.0, float(counter.get_total_flops()) / 2)
