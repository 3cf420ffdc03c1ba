"""correspondence: does hiding one part change the features of different images alike?

Zeiler & Fergus (ECCV 2014), section 4.3, Figure 8 and Table 1. In each image the box of a part is
covered, and the signs of what changes in the feature vector of a layer are compared between all
pairs of images. Random boxes of the same size are the baseline: a network that relates a part
across images gives the smaller distance for the part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from zfscale.analyses.correspondence.occluders import (
    ITSELF,
    OCCLUDERS,
    CoveredBox,
    Only,
    parts_in_input,
    random_box,
)
from zfscale.analyses.shared.images import DEFAULT, DESCRIPTION, Choice, all_batches, chosen
from zfscale.analyses.shared.options import Colour, Names, each_once
from zfscale.analysis import FILE, Analysis, Context, Output, Rows, View
from zfscale.boxes import RANDOM_BOXES
from zfscale.convnet.correspondence import Distances, changes, distances, words
from zfscale.convnet.defaults import last_convolution, last_hidden
from zfscale.convnet.network import Network
from zfscale.errors import UsageError
from zfscale.records import (
    Column,
    Columns,
    Image,
    ImageList,
    Layer,
    Reason,
    Table,
    Task,
    to_columns,
)

CORRESPONDENCE = Table(
    name="correspondence",
    version=1,
    columns=(
        Column("layer", "string", "name of the layer"),
        Column("part", "string", "name of the part, or `random`: the random boxes of all parts"),
        Column("random", "bool", "random boxes of the part's size were covered, not the part"),
        Column("images", "int64", "images that were compared"),
        Column("pairs", "int64", "pairs of images, those of each draw counted"),
        Column("mean", "float64", "mean Hamming distance of the signs, 0..1", True),
        Column("std", "float64", "standard deviation of that distance over the pairs", True),
        Column("chance", "float64", "mean distance if each vector were shuffled, 0..1", True),
    ),
    key=("layer", "part", "random"),
    identity=("layer", "part", "random", "images", "pairs", "mean", "std", "chance"),
)

SIGNS = (
    Column("layer", "string", "name of the layer"),
    Column("part", "string", "name of the part"),
    Column("draw", "int64", "number of the random box; ITSELF: the part"),
    Column("signs", "bytes", "packed as by `convnet.correspondence.signs`"),
)
"""What a task leaves behind for the pairs."""


def _as_spelt_now(only: Any) -> Any:
    return "discriminative" if only == "deciding" else only  # the older spelling


class Options(BaseModel, frozen=True, extra="forbid"):
    """Options of `correspondence` in a job file."""

    images: Choice = Field(default=DEFAULT, description=DESCRIPTION)
    parts: str | None = Field(
        default=None,
        min_length=1,
        description="Parquet or CSV file or URL with the columns key, part, x0, y0, x1, y1, in "
        "pixels of the stored images; left out, the images' own records say where parts are.",
        json_schema_extra={"format": FILE},
    )
    only: Annotated[Only, BeforeValidator(_as_spelt_now), AfterValidator(each_once)] = Field(
        default=None,
        description="Names of parts, or `discriminative`: those that are marked as such; left "
        "out, all.",
    )
    layers: Names = Field(
        default=None,
        description="Module names; left out, the last convolution after its rectification and "
        "what the classifier sees: the paper's layers 5 and 7.",
    )
    value: Colour = Field(
        default="mean",
        description="Colour of the occluder: [R, G, B], or the mean, which the network sees as 0.",
    )
    draws: int = Field(default=10, ge=1, le=1000, description="Random boxes an image and part.")
    seed: int = Field(default=0, ge=0, description="Another seed gives other random boxes.")


class Correspondence(Analysis[Options]):
    """Distances between the changes that hidden parts make, over images that show parts."""

    kind = "correspondence"
    Options = Options
    needs = ("scan",)
    tables = (CORRESPONDENCE, OCCLUDERS)
    task_forwards: ClassVar[int] = 1500
    """Images to forward in one task, occluded ones included, unless a single batch needs more."""
    task_bytes: ClassVar[int] = 256 << 20
    """Signs that one task may hold in memory, unless a single image has more."""

    def check(self, view: View) -> None:
        """Raises UsageError for a layer that is not there."""
        self._layers(view.network)

    def plan(self, view: View) -> Sequence[Task]:
        """Whole batches of images that show parts, with their boxes in pixels of the input.

        Where no image says where its parts are, there is nothing to do, and the run is told so.
        Raises UsageError where a file or a choice of parts was given and none of it can be used.
        """
        images = list(chosen(view, self.options.images))
        parts_of = view.parts(images, self.options.parts)
        with_parts = parts_in_input(images, parts_of, self.options.only, view.network.preprocessing)
        if not with_parts and self.options.parts is None and self.options.only is None:
            view.warn(
                f"{self.name} has nothing to compare: none of the {len(images)} chosen images "
                "says where its parts are; name a table of boxes with "
                f"analyses.{self.name}.parts"
            )
            return []
        if not with_parts:
            choice = self.options.images
            named = choice if isinstance(choice, str) else choice.model_dump()
            raise UsageError(
                f"analyses.{self.name}: {len(images)} images were chosen by {named}, and "
                f"{len(parts_of)} of them have boxes of parts, none of which can be used: name a "
                "file of boxes with `parts`, choose other `images` or parts (`only`), or leave "
                "correspondence out of the job"
            )
        size = self._task_images(view, max(len(parts) for _, parts in with_parts))
        return [
            self.task(*_work(with_parts[at : at + size])) for at in range(0, len(with_parts), size)
        ]

    def run(self, context: Context, task: Task) -> Output:
        """Cover each part of an image, then random boxes; keep the signs of what changes."""
        layers, crop = self._layers(context.network), context.network.preprocessing.crop
        covered: list[tuple[Any, ...]] = []
        sign_rows: list[tuple[Any, ...]] = []
        for batch in all_batches(context, task):
            planned = [self._boxes(image, task, crop) for image in batch.images]
            boxes = [[one.box for one in of_image] for of_image in planned]
            changed, finite = changes(
                context.network, layers, batch.pixels, boxes, self.options.value
            )
            for row, image in enumerate(batch.images):
                if not finite[row]:
                    context.quarantine(image, Reason.NON_FINITE)
                    continue
                for box, by_layer in zip(planned[row], changed[row], strict=True):
                    covered.append(box.row(image, crop))
                    for layer, bits in zip(layers, by_layer, strict=True):
                        name = (layer.name, box.part, box.draw)
                        sign_rows.append((*name, bits.tobytes()))
        sign_rows.sort(key=lambda row: row[:3])  # as `publish` reads them; images keep their order
        return Output(
            {
                "occluders": to_columns(OCCLUDERS.columns, covered),
                "signs": to_columns(SIGNS, sign_rows),
            }
        )

    def publish(self, view: View, tasks: Iterable[Task]) -> Iterator[tuple[Table, Columns]]:
        """All boxes; then the distances of all pairs, for one layer, part and draw at a time."""
        done = view.done
        readers = [done[task.id] for task in tasks]
        if not readers:
            return
        images: dict[str, set[str]] = defaultdict(set)
        for read in readers:
            rows = read("occluders")
            for image_id, part in zip(rows["image_id"], rows["part"], strict=True):
                images[part].add(image_id)
            yield OCCLUDERS, {**rows, "draw": np.ma.masked_equal(rows["draw"], ITSELF)}
        summary: list[tuple[Any, ...]] = []
        for layer in self._layers(view.network):
            pooled = Distances()
            for part in sorted(images):
                itself = _between(readers, layer, part, ITSELF)
                draws = range(self.options.draws)
                random = sum((_between(readers, layer, part, at) for at in draws), Distances())
                pooled += random
                summary.append(_row(layer, part, False, len(images[part]), itself))
                summary.append(_row(layer, part, True, len(images[part]), random))
            summary.append(
                _row(layer, RANDOM_BOXES, True, len(set().union(*images.values())), pooled)
            )
        yield CORRESPONDENCE, to_columns(CORRESPONDENCE.columns, summary)

    def _layers(self, network: Network) -> tuple[Layer, ...]:
        """The layers that are named, or the last convolution and what the classifier sees.

        Where the latter is not known, since the network cannot be traced or has no logits, and
        where the two are one and the same, the last convolution alone.
        """
        if self.options.layers is not None:
            return network.choose(self.options.layers)
        last = last_convolution(network)
        if network.graph is None or network.classes is None:
            return (last,)
        hidden = last_hidden(network)
        return (last, hidden) if hidden.node != last.node else (last,)

    def _task_images(self, view: View, parts: int) -> int:
        """Whole batches of images, or a part of one where many signs would be held."""
        boxes = parts * (1 + self.options.draws)
        layers = self._layers(view.network)
        held = boxes * sum(16 * words(_components(layer)) for layer in layers)
        batches = max(1, self.task_forwards // (view.batch * (1 + boxes)))
        return min(view.batch * batches, max(1, self.task_bytes // held))

    def _boxes(self, image: Image, task: Task, crop: tuple[int, int]) -> list[CoveredBox]:
        """The boxes to cover in an image: each of its parts, and its random boxes after it."""
        boxes = []
        for fields in task.payload["parts"][image.index]:
            part = CoveredBox(*fields)
            draws = range(self.options.draws)
            boxes += [
                part,
                *(random_box(part, image.id, at, self.options.seed, crop) for at in draws),
            ]
        return boxes


def _work(
    found: Sequence[tuple[Image, Sequence[CoveredBox]]],
) -> tuple[ImageList, dict[str, Any]]:
    """What a task reads, and the boxes of parts in these images."""
    images = ImageList(tuple(image for image, _ in found))
    parts = [[list(astuple(part)) for part in boxes] for _, boxes in found]
    return images, {"parts": parts}


def _between(readers: Sequence[Rows], layer: Layer, part: str, draw: int) -> Distances:
    """The distances between all images that have the part."""
    where: dict[str, str | tuple[int, int]] = {
        "layer": layer.name,
        "part": part,
        "draw": (draw, draw + 1),
    }
    packed = b"".join(record for read in readers for record in read("signs", **where)["signs"])
    size = _components(layer)
    return distances(np.frombuffer(packed, np.uint64).reshape(-1, 2, words(size)), size)


def _row(layer: Layer, part: str, random: bool, images: int, pairs: Distances) -> tuple[Any, ...]:
    """A row of `correspondence`."""
    size = _components(layer)
    measures = (pairs.mean(size), pairs.std(size), pairs.chance(size))
    return (layer.name, part, random, images, pairs.pairs, *measures)


def _components(layer: Layer) -> int:
    """Length of the feature vector of a layer."""
    return layer.channels * layer.height * layer.width
