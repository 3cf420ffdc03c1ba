"""Training in one process: SGD with momentum over a set of images that fits in memory.

The recipe of Zeiler & Fergus (ECCV 2014, section 3): mini-batches of 128, momentum, dropout, random
crops and flips; the learning rate falls as a cosine instead of by hand.
Knows jobs, images and models; not how to resume or to share the work among processes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors.torch import save
from torch.nn import functional

from zfscale import collection as sources
from zfscale import job as jobs
from zfscale import models
from zfscale.collection.decode import decode_ahead
from zfscale.collection.header import Quarantine
from zfscale.convnet.network import Network
from zfscale.errors import UsageError


class TrainJob(BaseModel):
    """What to train, on what, how, and where to put the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="zfscale:NAME, torchvision:NAME or package.module:factory.")
    images: tuple[str, ...] = Field(min_length=1, description="Labelled images to learn from.")
    held_out: tuple[str, ...] = Field(min_length=1, description="Labelled images to test on.")
    format: str | None = Field(
        default=None, description="Overrules what the names of the images say."
    )
    out: str = Field(
        pattern=r"\.safetensors$",
        description="File of the weights; the report goes beside it, as .json.",
    )
    epochs: int = Field(ge=1, description="Passes over the images.")
    batch: int = Field(default=128, ge=1, description="Images in a batch.")
    lr: float = Field(
        default=0.01, gt=0, description="Highest learning rate; it then falls to 0 as a cosine."
    )
    warmup: float = Field(default=0.5, ge=0, description="Epochs of linear rise of the rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    flip: bool = Field(default=False, description="Mirror half of the images.")
    shift: int = Field(default=0, ge=0, description="Move each image by up to so many pixels.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of weights, order and augmentation.")
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator(
        "images", "held_out", mode="before", json_schema_input_type=str | tuple[str, ...]
    )
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Epoch:
    """How one epoch went: mean training loss, fraction of held-out images classified right."""

    number: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """How a training ended: images used and left out, accuracy of the weights written."""

    job: TrainJob
    images: int
    held_out: int
    quarantined: int
    accuracy: float
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """Decoded images: `pixels` uint8 (N, 3, H, W), `labels` int64 (N,). Others are counted."""

    pixels: torch.Tensor
    labels: torch.Tensor
    quarantined: int


def load(path: str | Path, overrides: tuple[str, ...] = ()) -> TrainJob:
    """Read a training job. Raises UsageError naming the key, the value and what was expected."""
    return jobs.load_as(TrainJob, path, overrides)


def train(job: TrainJob, tell: Callable[[Epoch], None] = lambda epoch: None) -> Report:
    """Train, tell of every epoch, write the weights and a report beside them.

    The same job on the same machine gives the same weights. Raises UsageError for images without
    a label or with one that the model has no output for, and for a loss that is not finite.
    """
    device = job.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = models.load(job.model, f"seed:{job.seed}", device)
    training = _read(job.images, job.format, network)
    held_out = _read(job.held_out, job.format, network)
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        epochs = []
        for epoch in _epochs(job, network, training, held_out):
            tell(epoch)
            epochs.append(epoch)
    report = Report(
        job=job,
        images=len(training.labels),
        held_out=len(held_out.labels),
        quarantined=training.quarantined + held_out.quarantined,
        accuracy=epochs[-1].accuracy,
        epochs=tuple(epochs),
    )
    _write(report, network)
    return report


def accuracy(network: Network, examples: Examples, batch: int = 128) -> float:
    """The fraction of examples that the network puts into their class."""
    network.module.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(examples.labels), batch):
            chosen = slice(start, start + batch)
            outputs = network.module(network.normalise(examples.pixels[chosen]))
            right += int((outputs.argmax(dim=1).cpu() == examples.labels[chosen]).sum())
    return right / len(examples.labels)


def _read(places: Sequence[str], kind: str | None, network: Network) -> Examples:
    """All images at the given places that can be decoded, as the network sees them."""
    pixels: list[torch.Tensor] = []
    labels: list[int] = []
    quarantined = 0
    shards = sources.find(places, kind)
    indexed = [sources.index(shard) for shard in shards]
    numbered = sources.number_class_folders(shards, [len(rows["key"]) for rows in indexed])
    for shard, rows in zip(numbered, indexed, strict=True):
        samples = sources.read(shard, rows)
        for sample, decoded in decode_ahead(samples, network.preprocessing, threads=2, ahead=64):
            if isinstance(decoded, Quarantine):
                quarantined += 1
                continue
            if sample.label is None:
                raise UsageError(f"images: {shard.uri}: {sample.key} has no label to learn")
            if network.classes is None or not 0 <= sample.label < network.classes:
                raise UsageError(
                    f"images: {shard.uri}: {sample.key} has label {sample.label}; "
                    f"{network.name} has {network.classes} outputs"
                )
            pixels.append(decoded.pixels)
            labels.append(sample.label)
    if not pixels:
        raise UsageError(f"images: none of those at {', '.join(places)} can be decoded")
    return Examples(torch.stack(pixels), torch.tensor(labels), quarantined)


def _epochs(
    job: TrainJob, network: Network, training: Examples, held_out: Examples
) -> Iterator[Epoch]:
    module = network.module.requires_grad_(True)
    optimiser = torch.optim.SGD(
        module.parameters(), lr=job.lr, momentum=job.momentum, weight_decay=job.weight_decay
    )
    steps = math.ceil(len(training.labels) / job.batch)
    for number in range(job.epochs):
        began, total = time.monotonic(), 0.0
        module.train()
        order = torch.randperm(len(training.labels))
        for step in range(steps):
            chosen = order[step * job.batch : (step + 1) * job.batch]
            for group in optimiser.param_groups:
                group["lr"] = job.lr * _rate(job, number + step / steps)
            inputs = _augment(network.normalise(training.pixels[chosen]), job.flip, job.shift)
            labels = training.labels[chosen].to(network.device)
            loss = functional.cross_entropy(module(inputs), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.item() * len(chosen)
        if not math.isfinite(total):
            raise UsageError(f"lr: {job.lr}: the loss is no longer finite; lower it")
        right = accuracy(network, held_out, job.batch)
        yield Epoch(number + 1, total / len(training.labels), right, time.monotonic() - began)


def _rate(job: TrainJob, epoch: float) -> float:
    """The learning rate, as a fraction of `lr`, after `epoch` epochs."""
    rise = min(1.0, (epoch + 1e-3) / job.warmup) if job.warmup else 1.0
    return rise * (1 + math.cos(math.pi * epoch / job.epochs)) / 2


def _augment(images: torch.Tensor, flip: bool, shift: int) -> torch.Tensor:
    """Mirror half of the images, move each by up to `shift` pixels; the mean fills the border."""
    count, _, height, width = images.shape
    if flip:
        mirrored = (torch.rand(count) < 0.5).to(images.device).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(3), images)
    if shift:
        padded = functional.pad(images, (shift,) * 4)
        corners = torch.randint(0, 2 * shift + 1, (count, 2)).tolist()
        crops = zip(padded, corners, strict=True)
        images = torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in crops])
    return images.contiguous(memory_format=torch.channels_last)


def _write(report: Report, network: Network) -> None:
    out = Path(report.job.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    state = network.module.state_dict()
    weights = save({name: value.cpu().contiguous() for name, value in state.items()})
    # Replaced, not overwritten: who has loaded the old weights may still have them mapped.
    temporary = out.with_suffix(".partial")
    temporary.write_bytes(weights)
    temporary.replace(out)
    text = json.dumps({**asdict(report), "job": report.job.model_dump()}, indent=2)
    out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
