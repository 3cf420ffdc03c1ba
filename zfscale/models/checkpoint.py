"""Weights: read from a file or drawn from a seed, and put into a module.

Knows state dicts (safetensors, or torch files without any code in them); not which network
they belong to, nor how a URL becomes a local file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from zfscale.errors import UsageError

State = dict[str, torch.Tensor]


def seed_of(weights: str | None) -> int | None:
    """The N of `seed:N`; None where the weights are not drawn from a seed."""
    if weights is None or not weights.startswith("seed:"):
        return None
    digits = weights.removeprefix("seed:")
    if not digits.isdecimal() or int(digits) >= 2**63:
        raise UsageError(f"weights: {weights}: expected seed:N with a whole number N, e.g. seed:0")
    return int(digits)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw what torch draws inside from `seed`, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def initialise(module: nn.Module) -> None:
    """He et al. (ICCV 2015), section 2.2: weights N(0, 2 / fan-in), biases zero.

    It keeps the scale of activations through any number of rectified layers, so that a net of
    random weights has features to look at in its last layer as in its first.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def read(path: str | Path) -> State:
    """The state dict of a local file, names without the `module.` of a DataParallel wrapper.

    A safetensors file, or one that torch.save wrote: the state dict itself, or a checkpoint
    that holds it under "state_dict" or "model". Code in a pickle is never run. The content
    decides which it is, not the name.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"weights: {path}: there is no such file; give a file or seed:N")
    try:
        if _is_safetensors(path):
            content: Any = load_file(path)
        else:
            with path.open("rb") as file:  # given the path, torch would go by its ending
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"weights: {path}: cannot be read: {error}") from error
    except Exception as error:  # Damaged bytes make torch.load raise all kinds of errors.
        raise UsageError(
            f"weights: {path}: not a safetensors file, nor a state dict as written by "
            f"torch.save(model.state_dict(), path); a whole pickled model is not accepted, "
            f"for reading it would run its code"
        ) from error
    return _unwrap(content, path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as the format says: the length of a JSON object, and that object.

    The first bytes of a pickle or a ZIP archive, taken for that length, are more than any file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(1) == b"{" and 8 + length <= path.stat().st_size


def _unwrap(content: Any, path: Path) -> State:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        raise UsageError(
            f"weights: {path}: holds no state dict; expected names and tensors, alone or under "
            f'"state_dict" or "model"'
        )
    prefix = "module."
    if all(name.startswith(prefix) for name in content):
        return {name.removeprefix(prefix): value for name, value in content.items()}
    return dict(content)


def build_for(state: State, build: Callable[..., nn.Module]) -> nn.Module:
    """Call `build(classes)` with as many classes as the last layer has in `state`."""
    module = build()
    name, last = _last_layer(module)
    weight = state.get(f"{name}.weight")
    if weight is None or weight.shape[0] == last.weight.shape[0]:
        return module
    return build(weight.shape[0])


def _last_layer(module: nn.Module) -> tuple[str, nn.Conv2d | nn.Linear]:
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    return layers[-1]


def fill(module: nn.Module, state: State, place: str) -> None:
    """Put `state` into `module`, every name and shape of it; `place` stands in errors."""
    own = module.state_dict()
    wrong = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [
        f"{what}: {_some(found)}"
        for what, found in (
            ("missing", [name for name in own if name not in state]),
            ("unexpected", [name for name in state if name not in own]),
            ("wrong shape", wrong),
        )
        if found
    ]
    if faults:
        raise UsageError(
            f"weights: {place}: do not fit the model: {'; '.join(faults)}. Give the weights of "
            f"this model, or name a package.module:factory that builds the one they belong to"
        )
    module.load_state_dict(state)


def _some(found: list[str], limit: int = 5) -> str:
    rest = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + rest


def check_finite(module: nn.Module, place: str) -> None:
    """Refuse NaN and Inf: one such weight makes every image look broken."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Either bound is NaN if any value is. No mask: that takes as much memory as the weights.
        smallest, largest = tensor.aminmax()
        if not (smallest.isfinite() and largest.isfinite()):
            bad = int((~tensor.isfinite()).sum())
            raise UsageError(
                f"weights: {place}: {name} holds {bad} values that are NaN or Inf; "
                f"take an earlier checkpoint"
            )
