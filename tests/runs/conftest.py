"""Storages of every kind, and small tables to put in them."""

import numpy as np
import pytest

from zfscale.records import Column, Counts, Receipt, Table, Task
from zfscale.runs import segments
from zfscale.storage import open_storage

WINNERS = Table(
    name="winners",
    version=3,
    columns=(
        Column("layer", "string", "name of the layer"),
        Column("feature", "int64", "channel"),
        Column("rank", "int32", "0 for the strongest"),
        Column("score", "float32", "activation"),
        Column("label", "int64", "true class", True),
        Column("key", "string", "name of the image", True),
        Column("classes", "list<float64>", "means by class"),
        Column("dead", "bool", "never active"),
    ),
    key=("layer", "feature", "rank"),
    identity=("layer", "feature", "rank", "score", "label", "classes", "dead"),
    by_layer=True,
)


@pytest.fixture
def directory(tmp_path):
    """A storage on the local disk."""
    return open_storage(str(tmp_path / "run"))


@pytest.fixture
def winners():
    """The description of a table, and a function that makes n rows of it."""

    def rows(n, layers=("features.0", "fc/1"), seed=0):
        random = np.random.default_rng(seed)
        classes = np.empty(n, object)
        for at in range(n):
            classes[at] = random.random(at % 4)
        return {
            "layer": np.array([layers[at % len(layers)] for at in range(n)], object),
            "feature": np.arange(n)[::-1].copy(),
            "rank": (np.arange(n) % 9).astype(np.int32),
            "score": random.random(n, np.float32),
            "label": np.ma.masked_array(random.integers(0, 9, n), np.arange(n) % 3 == 0),
            "key": np.array([None if at % 5 == 0 else f"é{at}" for at in range(n)], object),
            "classes": classes,
            "dead": np.arange(n) % 2 == 0,
        }

    return WINNERS, rows


@pytest.fixture
def receipt():
    """A function that publishes a segment and gives the receipt of its task, one of many."""

    def make(storage, number, value=0, images=2, name="scan", device=""):
        task = Task(name, payload={"number": number})
        file = segments.write(storage, task, "rows", {"value": np.array([value])})
        return Receipt(task.id, (file,), Counts(images, ok=images), 0.5, device)

    return make
