"""Training: it learns, repeats itself, and the weights that ship with the package hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from zfscale import models
from zfscale.datasets import parts
from zfscale.engine import training
from zfscale.errors import UsageError
from zfscale.records import Preprocessing

JOBS = Path(__file__).parents[2] / "jobs"
MINI = "zfscale:zfnet-mini"


def job(tmp_path: Path, **changes: object) -> training.TrainJob:
    options = {
        "model": MINI,
        "images": str(tmp_path / "images/*.tar"),
        "held_out": str(tmp_path / "images/*.tar"),
        "out": str(tmp_path / "weights.safetensors"),
        "epochs": 1,
        "batch": 10,
        **changes,
    }
    return training.TrainJob.model_validate(options)


def coloured(folder: Path, classes: int) -> None:
    """Eight noisy images of each class, a colour of its own: folder/LABEL/*.png."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for number in range(8):
            pixels = rng.normal(110, 40, (24, 24, 3))
            pixels[..., label] += 30
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / str(label) / f"{label}{number}.png")


def two_classes(classes: int = 2) -> tuple[nn.Module, Preprocessing]:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8, classes),
    )
    mean = (128.0, 128.0, 128.0)
    return module, Preprocessing(resize=24, crop=(24, 24), mean=mean, std=(64.0, 64.0, 64.0))


def three_classes() -> tuple[nn.Module, Preprocessing]:
    return two_classes(3)


def test_it_learns_a_tiny_set_and_repeats_itself(tmp_path: Path):
    coloured(tmp_path / "images", 3)
    model, images = f"{__name__}:three_classes", str(tmp_path / "images")
    told: list[training.Epoch] = []
    learn = job(
        tmp_path, model=model, images=images, held_out=images, epochs=25, lr=0.05, flip=True
    )
    report = training.train(learn, told.append)
    assert report.accuracy >= 0.9
    assert report.epochs == tuple(told)
    assert told[-1].loss < 0.3 * told[0].loss
    assert (report.images, report.held_out, report.quarantined) == (24, 24, 0)

    first = (tmp_path / "weights.safetensors").read_bytes()
    torch.manual_seed(99)  # What the process drew before makes no difference.
    training.train(learn)
    assert (tmp_path / "weights.safetensors").read_bytes() == first

    written = json.loads((tmp_path / "weights.json").read_text())
    assert written["accuracy"] == report.accuracy
    assert written["job"]["lr"] == 0.05
    assert len(written["epochs"]) == 25

    network = models.load(model, str(tmp_path / "weights.safetensors"))
    examples = training._read(learn.images, None, network)
    assert training.accuracy(network, examples) == report.accuracy


def test_the_seed_decides(tmp_path: Path):
    parts.write(tmp_path / "images", 10)
    states = []
    for seed in (0, 1):
        training.train(job(tmp_path, seed=seed, flip=True, shift=2))
        states.append(load_file(tmp_path / "weights.safetensors"))
    assert not torch.equal(states[0]["conv1.weight"], states[1]["conv1.weight"])


def test_training_leaves_the_global_generator_alone(tmp_path: Path):
    parts.write(tmp_path / "images", 10)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.train(job(tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_a_rate_that_is_too_high_is_blamed(tmp_path: Path):
    parts.write(tmp_path / "images", 20)
    with pytest.raises(UsageError, match=r"lr: 1e\+20: the loss is no longer finite"):
        training.train(job(tmp_path, lr=1e20, warmup=0, epochs=2))
    assert not (tmp_path / "weights.safetensors").exists()


def test_images_without_a_label_are_refused(tmp_path: Path):
    (tmp_path / "flat").mkdir()
    parts.render(0, 0).image.save(tmp_path / "flat" / "a.jpg")
    with pytest.raises(UsageError, match="has no label to learn"):
        training.train(job(tmp_path, images=str(tmp_path / "flat")))


def test_a_label_without_an_output_is_refused(tmp_path: Path):
    coloured(tmp_path / "images", 3)
    images = str(tmp_path / "images")
    few = job(tmp_path, model=f"{__name__}:two_classes", images=images, held_out=images)
    with pytest.raises(UsageError, match=r"label 2; .*two_classes has 2 outputs"):
        training.train(few)


def test_broken_images_are_left_out_and_counted(tmp_path: Path):
    coloured(tmp_path / "images", 2)
    (tmp_path / "images/1/broken.png").write_bytes(b"not a picture")
    images = str(tmp_path / "images")
    report = training.train(
        job(tmp_path, model=f"{__name__}:two_classes", images=images, held_out=images)
    )
    assert (report.images, report.held_out, report.quarantined) == (16, 16, 2)


@pytest.mark.parametrize("name", ["train-zfnet-mini.yaml", "train-cifar.yaml"])
def test_job_files_load_and_can_be_overruled(name: str):
    loaded = training.load(JOBS / name, ("epochs=1", "images=[a.tar, b.tar]"))
    assert loaded.epochs == 1
    assert loaded.images == ("a.tar", "b.tar")
    assert loaded.held_out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=0", "epochs: 0 is not accepted"),
        ("out=weights.pt", "out: 'weights.pt' is not accepted"),
        ("momentum=1", "momentum: 1 is not accepted"),
        ("learning_rate=1", "learning_rate: unknown key; known are model"),
        ("device=tpu", "device: 'tpu' is not accepted"),
    ],
)
def test_mistakes_in_a_job_are_named(override: str, message: str):
    with pytest.raises(UsageError, match=message):
        training.load(JOBS / "train-zfnet-mini.yaml", (override,))


def test_the_rate_rises_and_falls(tmp_path: Path):
    eight = job(tmp_path, epochs=8, warmup=1)
    rates = [training._rate(eight, epoch) for epoch in (0, 0.5, 1, 4, 8)]
    assert rates == pytest.approx([0.001, 0.4962, 0.9619, 0.5, 0], abs=1e-3)
    assert training._rate(job(tmp_path, epochs=8, warmup=0), 0) == 1


def test_augmentation_against_a_literal_copy():
    torch.manual_seed(0)
    images = torch.arange(1.0, 1 + 40 * 3 * 5 * 6).reshape(40, 3, 5, 6)
    seen = set()
    for before, after in zip(images, training._augment(images, True, 2), strict=True):
        moves = {
            (mirrored, dy, dx)
            for mirrored in (False, True)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(after, moved(before, mirrored, dy, dx))
        }
        assert len(moves) == 1
        seen |= moves
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {dy for _, dy, _ in seen} == {dx for _, _, dx in seen} == {-2, -1, 0, 1, 2}
    assert torch.equal(training._augment(images, False, 0), images)


def moved(image: torch.Tensor, mirrored: bool, dy: int, dx: int) -> torch.Tensor:
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                sx = x + dx
                out[:, y, x] = image[:, y + dy, width - 1 - sx if mirrored else sx]
    return out


def held_out_accuracy(folder: Path, count: int) -> float:
    # No image of this seed took part in training or in choosing how to train.
    parts.write(folder, count, seed=2)
    network = models.load(MINI, None)
    examples = training._read([str(folder)], None, network)
    assert len(examples.labels) == count
    return training.accuracy(network, examples)


def test_shipped_weights_classify_fresh_images(tmp_path: Path):
    assert held_out_accuracy(tmp_path, 200) >= 0.90


@pytest.mark.slow
def test_shipped_weights_classify_95_percent(tmp_path: Path):
    assert held_out_accuracy(tmp_path, 1000) >= 0.95


def test_shipped_weights_are_small():
    (file,) = (Path(models.__file__).parent / "networks/weights").glob("zfnet_mini.safetensors")
    assert file.stat().st_size <= 3_000_000
    state = load_file(file)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert math.prod(state["fc8.weight"].shape) == 10 * 256
