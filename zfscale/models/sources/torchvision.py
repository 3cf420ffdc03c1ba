"""The classification networks of torchvision: `torchvision:NAME[@WEIGHTS]`.

Their published weights come with transforms, which become the preprocessing. torchvision is
needed for nothing else here, so a machine without it can use every other network.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zfscale.errors import UsageError
from zfscale.models import checkpoint
from zfscale.records import Preprocessing

FORM = "torchvision:NAME[@WEIGHTS]"
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Classifiers that help in training only. They are left out, and so are their weights."""


def load(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing]:
    """Build `NAME[@WEIGHTS]`. A file or seed in `weights` takes the place of the published ones.

    Without @WEIGHTS the preprocessing is that of the first weights published for the network
    (short side 256, crop 224 for most). With them nothing is downloaded if `weights` is given.
    """
    name, _, member = name.partition("@")
    published = _published(name, member)

    def build(classes: int = 1000) -> nn.Module:
        return _build(name, classes, transform_input=bool(member))

    seed = checkpoint.seed_of(weights)
    if seed is not None:
        module = _from_seed(build, seed)
    elif weights is not None:
        module = _from_state(build, checkpoint.read(weights), weights)
    elif member:
        module = _from_state(build, _download(published), f"torchvision:{name}@{member}")
    else:
        raise UsageError(
            f"model: torchvision:{name}: no weights; write torchvision:{name}@DEFAULT to "
            f"download the published ones, or set weights to a file or to seed:0"
        )
    return module, _fold_input_transform(module, _preprocessing(published))


def _torchvision() -> Any:
    try:
        import torchvision.models
    except ImportError as error:
        raise UsageError(
            "model: torchvision:… needs torchvision, which is not installed here; "
            "install it with: pip install torchvision"
        ) from error
    return torchvision.models


def _published(name: str, weights: str) -> Any:
    """The member `weights` of the network's enum of weights; its first one for an empty name."""
    models = _torchvision()
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known) or ["alexnet", "vgg16", "resnet50"]
        raise UsageError(
            f"model: torchvision:{name}: torchvision has no such classification network; "
            f"it has e.g. {', '.join(close)}"
        )
    enum = models.get_model_weights(name)
    if not weights:
        return next(iter(enum))
    if weights not in enum.__members__:
        raise UsageError(
            f"model: torchvision:{name}@{weights}: there are no such weights; "
            f"there are {', '.join(enum.__members__)}"
        )
    return enum[weights]


def _build(name: str, classes: int, transform_input: bool) -> nn.Module:
    """The network without auxiliary classifiers.

    GoogLeNet and Inception map their input if it is meant for their published weights, as
    torchvision does when it loads these itself.
    """
    auxiliary = _AUXILIARY.get(name, ())
    options = {"init_weights": False, "transform_input": transform_input} if auxiliary else {}
    module: Any = _torchvision().get_model(name, weights=None, num_classes=classes, **options)
    for part in auxiliary:
        setattr(module, part, None)
        module.aux_logits = False
    return module  # type: ignore[no-any-return]


def _from_seed(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with checkpoint.seeded(seed):
        module = build()
        # The initialisation of GoogLeNet and Inception counts on batch statistics, which an
        # untrained net in evaluation mode has not: activations would fade or grow by 1e12.
        if hasattr(module, "aux_logits"):
            checkpoint.initialise(module)
    return module


def _from_state(build: Callable[..., nn.Module], state: checkpoint.State, place: str) -> nn.Module:
    with checkpoint.seeded(0):
        module = checkpoint.build_for(state, build)
    if hasattr(module, "aux_logits"):
        parts = tuple(f"{part}." for parts in _AUXILIARY.values() for part in parts)
        state = {key: value for key, value in state.items() if not key.startswith(parts)}
    checkpoint.fill(module, state, place)
    return module


def _download(published: Any) -> checkpoint.State:
    try:
        state: checkpoint.State = published.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"model: the weights {published} could not be downloaded from {published.url}: "
            f"{error}. Set weights to a local file of them"
        ) from error
    return state


def _preprocessing(published: Any) -> Preprocessing:
    """The transforms of published weights; reading them downloads nothing."""
    transforms = published.transforms()
    (resize,) = transforms.resize_size
    (crop,) = transforms.crop_size
    return Preprocessing(
        resize=resize,
        crop=(crop, crop),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        scale=1 / 255,
        interpolation=transforms.interpolation.value,
    )


def _fold_input_transform(module: Any, given: Preprocessing) -> Preprocessing:
    """Turn GoogLeNet's own affine map of each channel, a v + b, into mean and deviation.

    With v = (p - mean) / std: a v + b = (p - (mean - b std / a)) / (std / a).
    """
    if not getattr(module, "transform_input", False):
        return given
    zero_and_one = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    b, end = module._transform_input(zero_and_one.expand(2, 3, 1, 1)).flatten(1)
    a = end - b
    module.transform_input = False
    mean = torch.tensor(given.mean, dtype=torch.float64)
    std = torch.tensor(given.std, dtype=torch.float64)
    return replace(given, mean=tuple((mean - b * std / a).tolist()), std=tuple((std / a).tolist()))
