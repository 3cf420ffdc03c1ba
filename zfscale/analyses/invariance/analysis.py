"""invariance: how far features move, and whether the class stays, when an image is transformed.

Zeiler & Fergus (ECCV 2014), section 4.1 "Feature Invariance" and Figure 5: images are translated,
scaled and rotated by varying amounts; for each amount the Euclidean distance between the feature
vectors of the original and the transformed image, in a low and a high layer, and the probability
of the true label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, Field, field_validator, model_validator

from zfscale.analyses.invariance import amounts as _amounts
from zfscale.analyses.invariance.amounts import Amounts, Shifts, Steps
from zfscale.analyses.shared.images import DEFAULT, DESCRIPTION, Choice, all_batches, groups
from zfscale.analyses.shared.options import Names
from zfscale.analysis import Analysis, Context, Output, View
from zfscale.convnet.defaults import first_layer, last_convolution, last_hidden
from zfscale.convnet.network import Network
from zfscale.convnet.responses import Responses, Step, respond
from zfscale.convnet.transforms import TRANSFORMS
from zfscale.errors import UsageError
from zfscale.records import Column, Columns, Image, Layer, Reason, Table, Task

INVARIANCE = Table(
    name="invariance",
    version=1,
    columns=(
        Column("image_id", "string", "content hash of the image"),
        Column("key", "string", "name of the image in its collection"),
        Column("label", "int64", "true class", True),
        Column("target", "int64", "class whose probability is reported", True),
        Column("transform", "string", "vertical, horizontal, scale or rotation"),
        Column("amount", "float64", "pixels down or right, factor, or degrees anticlockwise"),
        Column("layer", "string", "name of the layer"),
        Column("distance", "float64", "Euclidean distance of its features from the original's"),
        Column("normalised", "float64", "distance / norm of the original's features", True),
        Column("probability", "float32", "of the target (softmax)", True),
        Column("predicted", "int64", "most probable class of the transformed image", True),
    ),
    key=("image_id", "transform", "amount", "layer"),
    identity=(
        *("image_id", "label", "target", "transform", "amount", "layer"),
        *("distance", "normalised", "probability", "predicted"),
    ),
)

_AUTO = "auto: whole pixels up to 60/224 of the {} either way, 12 steps or fewer. "


class Options(BaseModel, frozen=True, extra="forbid"):
    """Options of `invariance` in a job file. The amount of no change is always added."""

    images: Choice = Field(default=DEFAULT, description=DESCRIPTION)
    layers: Names = Field(
        default=None,
        description="Names of modules or nodes; left out, the first convolution after its "
        "rectification, and the last hidden layer.",
    )
    vertical: Shifts | None = Field(
        default="auto",
        description="Pixels down. " + _AUTO.format("height") + _amounts.DESCRIPTION,
    )
    horizontal: Shifts | None = Field(
        default=None,
        description="Pixels to the right. " + _AUTO.format("width") + _amounts.DESCRIPTION,
    )
    scale: Amounts | None = Field(
        default=Steps.model_validate({"from": 1, "to": 1.8, "step": 0.1}),
        description="Enlargement about the centre, above 0. " + _amounts.DESCRIPTION,
    )
    rotation: Amounts | None = Field(
        default=Steps.model_validate({"from": 0, "to": 360, "step": 10}),
        description="Degrees anticlockwise about the centre. " + _amounts.DESCRIPTION,
    )

    @field_validator("scale")
    @classmethod
    def _positive(cls, factors: Amounts | None) -> Amounts | None:
        if factors and min(_amounts.listed(factors)) <= 0:
            raise ValueError("a factor must be above 0; 1 is no change, 2 is twice as large")
        return factors

    @model_validator(mode="after")
    def _something(self) -> Options:
        if not any(getattr(self, name) for name in TRANSFORMS):
            raise ValueError(f"nothing to do: give amounts of {', '.join(TRANSFORMS)}")
        return self


class Invariance(Analysis[Options]):
    """Distances of features and probabilities of classes, over a few images at a time."""

    kind = "invariance"
    Options = Options
    needs = ("scan",)
    tables = (INVARIANCE,)
    task_forwards: ClassVar[int] = 1024
    """Images through the network in one task, about: some ten seconds of ZFNet on two cores."""

    def check(self, view: View) -> None:
        """Raises UsageError for a layer that is not there, and for shifts out of sight."""
        self._layers(view.network)
        self._steps(view.network)

    def plan(self, view: View) -> Iterable[Task]:
        """One task for as many images as share a batch well: B, or a half of it, or a quarter."""
        steps = len(self._steps(view.network))
        size = view.batch
        while size > 1 and size * steps > self.task_forwards:
            size //= 2
        tasks = (self.task(images) for images in groups(view, self.options.images, size))
        return tasks if self.options.images == "all" else list(tasks)

    def run(self, context: Context, task: Task) -> Output:
        """All transforms of the images of one task."""
        network = context.network
        layers, steps = self._layers(network), self._steps(network)
        parts = [_rows([], layers, steps, Responses.none(len(steps), len(layers)))]
        for batch in all_batches(context, task):
            labels = [-1 if image.label is None else image.label for image in batch.images]
            responses = respond(network, layers, batch.pixels, np.array(labels, np.int64), steps)
            for index in np.flatnonzero(~responses.finite):
                context.quarantine(batch.images[index], Reason.NON_FINITE)
            parts.append(_rows(batch.images, layers, steps, responses))
        stacked = {name: np.ma.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Output({"invariance": stacked})

    def publish(self, view: View, tasks: Iterable[Task]) -> Iterator[tuple[Table, Columns]]:
        """The rows as they are."""
        done = view.done
        for task in tasks:
            yield INVARIANCE, done[task.id]("invariance")

    def _layers(self, network: Network) -> tuple[Layer, ...]:
        """The layers that are named, or the first and the last hidden one.

        Where the last hidden one cannot be known, since the network cannot be traced or has no
        logits, the last convolution. Two that are one and the same count once.
        """
        if self.options.layers is not None:
            return network.choose(self.options.layers)
        if network.graph is None or network.classes is None:
            chosen = [first_layer(network), last_convolution(network)]
        else:
            chosen = [*network.layers[:1], last_hidden(network)]
        places: dict[str, Layer] = {}
        for layer in chosen:
            places.setdefault(layer.node or layer.name, layer)
        return tuple(places.values())

    def _steps(self, network: Network) -> list[Step]:
        """Every transform with every amount, that of no change among them."""
        sides = dict(zip(("vertical", "horizontal"), network.preprocessing.crop, strict=True))
        steps = []
        for name, transform in TRANSFORMS.items():
            option = getattr(self.options, name)
            if not option:
                continue
            amounts = _amounts.spread(sides[name]) if option == "auto" else _amounts.listed(option)
            farthest = max(amounts, key=abs)
            if name in sides and abs(farthest) >= sides[name]:
                raise UsageError(
                    f"analyses.{self.name}.{name}: {farthest:g} moves the whole image out of "
                    f"sight, for {network.name} sees {sides[name]} pixels; stay below that"
                )
            steps += [(name, each) for each in _amounts.with_neutral(amounts, transform.neutral)]
        return steps


def _rows(
    images: Sequence[Image], layers: Sequence[Layer], steps: Sequence[Step], responses: Responses
) -> Columns:
    """Rows of the table for the images that are finite."""
    finite = np.flatnonzero(responses.finite)
    shape = (len(finite), len(steps), len(layers))
    at, step, layer = (index.ravel() for index in np.indices(shape))
    image = finite[at]

    def texts(values: Sequence[str]) -> Any:
        return np.array(values, dtype=object)

    label = np.array([-1 if each.label is None else each.label for each in images], np.int64)
    target, norm = responses.target[image], responses.norm[image, layer]
    distance, unknown = responses.distance[image, step, layer], target < 0
    return {
        "image_id": texts([each.id for each in images])[image],
        "key": texts([each.key for each in images])[image],
        "label": np.ma.masked_less(label[image], 0),
        "target": np.ma.masked_array(target, unknown),
        "transform": texts([name for name, _ in steps])[step],
        "amount": np.array([amount for _, amount in steps])[step],
        "layer": texts([each.name for each in layers])[layer],
        "distance": distance,
        "normalised": np.ma.masked_array(distance / np.where(norm, norm, 1), norm == 0),
        "probability": np.ma.masked_array(responses.probability[image, step], unknown),
        "predicted": np.ma.masked_array(responses.predicted[image, step], unknown),
    }
