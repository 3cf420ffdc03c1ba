"""brightness: does a network take dark and bright images for different classes?"""

from pydantic import BaseModel, Field

from zfscale.analysis import Analysis, Output
from zfscale.records import Column, ImageList, Table, to_columns

COLUMNS = (
    Column("image_id", "string", "content hash of the image"),
    Column("brightness", "float64", "mean of its pixels as the network sees it, 0..1"),
    Column("predicted", "int64", "most probable class"),
)
BRIGHTNESS = Table(
    "brightness", 1, COLUMNS, key=("image_id",), identity=("image_id", "brightness", "predicted")
)


class Options(BaseModel, frozen=True, extra="forbid"):
    """What a job file may say of it."""

    images: int = Field(default=100, ge=1, description="Images in the sample.")
    seed: int = Field(default=0, ge=0, description="Another seed gives another sample.")


class Brightness(Analysis[Options]):
    """Brightness and prediction of a sample of the images that a scan has accepted."""

    kind = "brightness"
    Options = Options
    needs = ("scan",)
    tables = (BRIGHTNESS,)

    def plan(self, view):
        """A batch of images in each task."""
        images = view.sample(self.options.images, self.options.seed)
        for at in range(0, len(images), view.batch):
            yield self.task(ImageList(tuple(images[at : at + view.batch])))

    def run(self, context, task):
        """Look at the images of one task, on a worker."""
        rows = []
        for batch in context.batches():
            brightness = batch.pixels.double().mean((1, 2, 3)) / 255
            predicted = context.network.forward(batch.pixels).argmax(1)
            for at, image in enumerate(batch.images):  # after these, the batch is padded
                rows.append((image.id, float(brightness[at]), int(predicted[at])))
        return Output({"rows": to_columns(COLUMNS, rows)})

    def publish(self, view, tasks):
        """The rows of all tasks."""
        for task in tasks:
            yield BRIGHTNESS, view.done[task.id]("rows")


KIND = "brightness"
TEMPLATES = {
    "brightness.html": """{% extends "base.html" %}{% block title %}{{ site.title }}{% endblock %}
{% block main %}<h1>{{ site.title }}</h1><table><tr><th>class<th>images<th>brightness</tr>
{% for row in means.itertuples() %}<tr><td>{{ row.Index }}<td>{{ row.size }}
<td>{{ "%.3f" % row.mean }}</tr>{% endfor %}</table>{% endblock %}""",
    "mean.html": '{% extends "panel.html" %}{% block content %}{{ "%.3f" % mean }}{% endblock %}',
}


def pages(site):
    """One page in the gallery: the mean brightness of what is taken for each class."""
    from zfscale.gallery.pages import Page  # here, for workers need no gallery

    means = site.analysis.table().groupby("predicted")["brightness"].agg(["size", "mean"])
    yield Page(f"{site.slug}.html", "brightness.html", {"means": means})


def image_panels(site):
    """On the page of each image of the gallery: its own brightness."""
    from zfscale.gallery.pages import Panel

    for row in site.analysis.table().itertuples():
        yield row.image_id, Panel(site.title, "mean.html", {"mean": row.brightness})
