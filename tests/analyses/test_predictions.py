"""The rank of the true class where logits are equal: ties go by class index, as with argmax."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zfscale.analyses.scan.predictions import predict
from zfscale.analysis import Batch
from zfscale.convnet.observing.observe import Observation
from zfscale.convnet.observing.topk import ImageIds
from zfscale.records import Image, ImageRef


def _predict(logits: np.ndarray, labels: list[int]) -> dict[str, np.ndarray]:
    count = len(labels)
    images = tuple(
        Image(at, f"{at:032x}", str(at), label, ImageRef("nowhere"), 8, 8)
        for at, label in enumerate(labels)
    )
    none = np.empty((count, 0), np.float32)
    seen = Observation(np.ones(count, bool), none, none, {}, logits.astype(np.float32))
    ids = ImageIds.of([image.id for image in images], labels)
    return predict(Batch(torch.empty(0), images), ids, seen)


def test_constant_logits_are_right_for_the_first_class_only() -> None:
    rows = _predict(np.zeros((10, 10)), list(range(10)))
    assert rows["predicted"].tolist() == [0] * 10
    assert rows["true_class_rank"].tolist() == list(range(10))


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=9),
    st.randoms(use_true_random=False),
)
def test_rank_is_the_place_in_a_stable_sort(logits: list[list[int]], random) -> None:
    labels = [random.randrange(7) for _ in logits]
    rows = _predict(np.array(logits), labels)
    order = torch.tensor(logits).sort(dim=1, descending=True, stable=True).indices.tolist()
    ranks = [row.index(label) for row, label in zip(order, labels, strict=True)]
    assert rows["true_class_rank"].tolist() == ranks
    is_right = rows["predicted"] == np.array(labels)
    assert is_right.tolist() == [rank == 0 for rank in ranks]


@pytest.mark.parametrize("label", [-1, 7])
def test_no_rank_without_a_class_of_the_network(label: int) -> None:
    assert _predict(np.zeros((1, 7)), [label])["true_class_rank"].mask.all()
