"""index: the images of the collection, one row each, without decoding any.

The first analysis of every run: workers list the samples of each shard, once. From then on a range
of images is a range of these rows, and each image can be read again from its row alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from zfscale.analysis import Analysis, Context, Output, View
from zfscale.records import Task


class Options(BaseModel, frozen=True, extra="forbid"):
    """What is indexed: the keys `images` and `format` of the job file."""

    images: tuple[str, ...] = Field(min_length=1, description="Places of the images.")
    format: str | None = Field(default=None, description="Format of all of them.")


class Index(Analysis[Options]):
    """Lists the samples of every shard."""

    kind = "index"
    Options = Options
    fixed = True
    uses_network = False

    def metadata(self, view: View) -> Mapping[str, Any]:
        """The names of the classes, once it is known which folders hold images."""
        done = view.done
        complete = all(task.id in done for task in self.plan(view))
        return {"classes": view.class_names()} if complete else {}

    def plan(self, view: View) -> Sequence[Task]:
        """One task a shard. A shard whose size or time has changed makes another task."""
        return [self.task(shard) for shard in view.shards]

    def run(self, context: Context, task: Task) -> Output:
        """List the samples of one shard."""
        return Output({"index": context.index()})
