"""Which images a sweep goes over, and how they are cut into tasks.

What a sweep does with one image costs as much as scanning hundreds, so its tasks are small: a few
images, or a part of what is to be done with one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Discriminator, Field, Tag

from zfscale.analyses.scan.tables import WINNERS
from zfscale.analysis import Batch, Context, View
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Image, ImageList, Task


class Sample(BaseModel, frozen=True, extra="forbid"):
    """A sample of the accepted images, the same for one seed."""

    sample: int = Field(ge=1, description="Images in the sample; all, if there are fewer.")
    seed: int = Field(default=0, ge=0, description="Another seed gives another sample.")


class Keys(BaseModel, frozen=True, extra="forbid"):
    """Images by name."""

    keys: tuple[str, ...] = Field(
        min_length=1,
        description="Keys, as in the table `images`; in quotes if they look like numbers.",
    )


class WinnersOf(BaseModel, frozen=True, extra="forbid"):
    """The images that won a place in one of some layers."""

    winners: tuple[str, ...] = Field(min_length=1, description="Names of scanned layers.")


FORMS = (
    "{sample: N, seed: S}, {keys: [KEY, ...]}, winners (of all layers), {winners: [LAYER, ...]}, "
    "or all"
)


def _form(choice: Any) -> str | None:
    """Which form is meant, so that an error is about that one."""
    match choice:
        case Sample() | {"sample": _}:
            return "sample"
        case Keys() | {"keys": _}:
            return "keys"
        case WinnersOf() | {"winners": _}:
            return "winners of"
        case "winners" | "all":
            return "word"
    return None


Choice = Annotated[
    Annotated[Sample, Tag("sample")]
    | Annotated[Keys, Tag("keys")]
    | Annotated[WinnersOf, Tag("winners of")]
    | Annotated[Literal["winners", "all"], Tag("word")],
    Discriminator(
        _form,
        custom_error_type="images",
        custom_error_message=f"expected {FORMS}",
    ),
]
DEFAULT = Sample(sample=100)
DESCRIPTION = f"Which images: {FORMS}."


def groups(view: View, choice: Choice, size: int) -> Iterator[ImageList]:
    """The chosen images in the order of the collection, at most `size` in a group."""
    images = iter(chosen(view, choice))
    while group := tuple(islice(images, size)):
        yield ImageList(group)


def chosen(view: View, choice: Choice) -> Iterable[Image]:
    """The images of a choice, in the order of the collection: such as the scan has accepted.

    All of them come as a stream, and can be gone through once.
    """
    match choice:
        case "all":
            return view.accepted()
        case Sample(sample=count, seed=seed):
            return view.sample(count, seed)
        case Keys(keys=keys):
            return view.by_key(keys)
        case WinnersOf(winners=layers):
            missing = sorted(set(layers) - set(view.layers))
            if missing:
                raise UsageError(
                    f"images.winners: the run has no layer {missing[0]!r}; it has "
                    f"{', '.join(view.layers)}"
                )
            winners = view.table("scan", WINNERS)
            won = winners["image_id"][np.isin(winners["layer"].astype(str), layers)]
            return view.images(sorted(set(won.tolist())))
        case _:
            return view.images(sorted(set(view.table("scan", WINNERS)["image_id"].tolist())))


def all_batches(context: Context, task: Task) -> Iterator[Batch]:
    """The batches of a task. Raises IntegrityError at their end if a chosen image is missing.

    The scan has accepted every chosen image, so one that cannot be read is gone or was changed.
    """
    read: set[str] = set()
    for batch in context.batches():
        read.update(image.id for image in batch.images)
        yield batch
    if isinstance(task.images, ImageList):
        missing = [image for image in task.images.images if image.id not in read]
        if missing:
            others = f" and {len(missing) - 1} other images" if len(missing) > 1 else ""
            raise IntegrityError(
                f"{missing[0].key} in {missing[0].ref.uri}{others} can no longer be read as "
                "scanned: restore what was there, or scan into a new run"
            )
