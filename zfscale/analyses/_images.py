"""Which images a sweep goes over, and how they are cut into tasks.

What a sweep does with one image costs as much as scanning hundreds, so its tasks are small: a few
images, or a part of what is to be done with one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from zfscale.analyses import Batch, Context, View
from zfscale.analyses._tables import WINNERS
from zfscale.errors import IntegrityError, UsageError
from zfscale.records import Columns, Image, ImageList, ImageRange, Task


class Sample(BaseModel, frozen=True, extra="forbid"):
    """A sample of the accepted images, the same for one seed."""

    sample: int = Field(ge=1, description="Images in the sample; all, if there are fewer.")
    seed: int = Field(default=0, ge=0, description="Another seed gives another sample.")


class Keys(BaseModel, frozen=True, extra="forbid"):
    """Images by name."""

    keys: tuple[str, ...] = Field(min_length=1, description="Keys, as in the table `images`.")


class WinnersOf(BaseModel, frozen=True, extra="forbid"):
    """The images that won a place in one of some layers."""

    winners: tuple[str, ...] = Field(min_length=1, description="Names of scanned layers.")


Choice = Sample | Keys | WinnersOf | Literal["winners", "all"]
DEFAULT = Sample(sample=100)
DESCRIPTION = (
    "Which images: {sample: N, seed: S}, {keys: [KEY, ...]}, winners (of all layers), "
    "{winners: [LAYER, ...]}, or all."
)


def groups(view: View, choice: Choice, size: int) -> list[ImageRange | ImageList]:
    """The chosen images in the order of the collection, at most `size` in a group.

    A copy of an image may come in two groups of `all`: see `once`.
    """
    if choice == "all":
        return [
            ImageRange(whole.shard, start, min(start + size, whole.stop), whole.skip)
            for whole in view.ranges
            for start in range(whole.start, whole.stop, size)
        ]
    images = chosen(view, choice)
    return [ImageList(tuple(images[at : at + size])) for at in range(0, len(images), size)]


def chosen(view: View, choice: Choice) -> Sequence[Image]:
    """The images of a choice other than `all`, one by one."""
    match choice:
        case Sample(sample=count, seed=seed):
            return view.sample(count, seed)
        case Keys(keys=keys):
            return view.keyed(keys)
        case WinnersOf(winners=layers):
            missing = sorted(set(layers) - set(view.layers))
            if missing:
                raise UsageError(
                    f"images.winners: the run has no layer {missing[0]!r}; it has "
                    f"{', '.join(view.layers)}"
                )
            winners = view.table(WINNERS)
            won = winners["image_id"][np.isin(winners["layer"].astype(str), layers)]
            return view.images(sorted(set(won.tolist())))
        case _:
            return view.images(sorted(set(view.table(WINNERS)["image_id"].tolist())))


def all_batches(context: Context, task: Task) -> Iterator[Batch]:
    """The batches of a task. Raises IntegrityError at their end if a chosen image did not come.

    The scan has accepted it, so it is no bad input: it is gone or has changed since then.
    """
    seen: set[str] = set()
    for batch in context.batches():
        seen.update(image.id for image in batch.images)
        yield batch
    if isinstance(task.images, ImageList):
        missing = [image for image in task.images.images if image.id not in seen]
        if missing:
            raise IntegrityError(
                f"{len(missing)} images can no longer be read as they were scanned, e.g. "
                f"{missing[0].key} in {missing[0].ref.uri}: restore them, or scan into a new run"
            )


def once(parts: Iterator[tuple[Any, Columns]]) -> Iterator[Columns]:
    """Rows of tasks without those of images that an earlier task had.

    Each part comes with what tells apart tasks of one image (a range of positions, or None).
    """
    seen: dict[Any, set[str]] = {}
    for which, rows in parts:
        known = seen.setdefault(which, set())
        ids: NDArray[Any] = rows["image_id"]
        new = np.array([id_ not in known for id_ in ids.tolist()], bool)
        known.update(ids.tolist())
        yield {name: values[new] for name, values in rows.items()}
