"""What a scan publishes: the tables `images`, `features` and `winners`, column by column."""

from __future__ import annotations

from zfscale.records import Column, Table

IMAGES = Table(
    name="images",
    version=2,
    columns=(
        Column("id", "string", "content hash, 32 hex digits; null where it does not decode", True),
        Column("key", "string", "name of the image in its collection"),
        Column("uri", "string", "file that holds the image"),
        Column("offset", "int64", "first byte of the image in that file", True),
        Column("length", "int64", "length of the image in bytes", True),
        Column("row_group", "int64", "row group of a Parquet file", True),
        Column("row", "int64", "row within that row group", True),
        Column("label", "int64", "true class", True),
        Column("width", "int64", "width as stored, in pixels", True),
        Column("height", "int64", "height as stored, in pixels", True),
        Column("predicted", "int64", "most probable class", True),
        Column("probability", "float32", "its probability (softmax)", True),
        Column("true_class_rank", "int64", "classes that come before the true one", True),
        Column("status", "string", "ok, quarantined or duplicate"),
        Column("reason", "string", "why it was quarantined", True),
    ),
    key=("uri", "offset", "row_group", "row", "key"),
    identity=("id", "label", "width", "height", "predicted", "probability", "true_class_rank"),
)

FEATURES = Table(
    name="features",
    version=1,
    columns=(
        Column("layer", "string", "name of the layer"),
        Column("feature", "int64", "channel of the layer, or unit of a fully connected one"),
        Column("max", "float32", "largest activation over all images"),
        Column("mean", "float64", "mean over images of the maximum over the map"),
        Column("std", "float64", "standard deviation over images of that maximum"),
        Column("fraction_active", "float64", "fraction of images whose maximum is above zero"),
        Column("dead", "bool", "no image activates it"),
        Column("selectivity", "float64", "class selectivity index of Morcos et al. (2018)", True),
        Column("top_class", "int64", "class with the highest mean", True),
        Column("top_classes", "list<int64>", "the five classes with the highest means"),
    ),
    key=("layer", "feature"),
    identity=(
        *("layer", "feature", "max", "mean", "std", "fraction_active", "dead"),
        *("selectivity", "top_class", "top_classes"),
    ),
    by_layer=True,
)

WINNERS = Table(
    name="winners",
    version=1,
    columns=(
        Column("layer", "string", "name of the layer"),
        Column("feature", "int64", "channel or unit"),
        Column("rank", "int64", "0 for the strongest image"),
        Column("score", "float32", "activation: the maximum over the map"),
        Column("image_id", "string", "content hash of the image"),
        Column("key", "string", "name of the image in its collection"),
        Column("y", "int64", "row of the maximum in the map"),
        Column("x", "int64", "column of the maximum in the map"),
        Column("y0", "int64", "top of the receptive field in input pixels, may be < 0", True),
        Column("x0", "int64", "left of the receptive field, may be < 0", True),
        Column("y1", "int64", "bottom of the receptive field, exclusive", True),
        Column("x1", "int64", "right of the receptive field, exclusive", True),
        Column("label", "int64", "true class", True),
    ),
    key=("layer", "feature", "rank"),
    identity=("layer", "feature", "rank", "score", "image_id", "y", "x", "label"),
    by_layer=True,
)
