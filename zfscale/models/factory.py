"""A network of the user's own: `package.module:factory`, called without arguments."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from zfscale.errors import UsageError
from zfscale.models import checkpoint
from zfscale.records import Preprocessing

IMAGENET = Preprocessing(
    resize=256,
    crop=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    scale=1 / 255,
)
"""The preprocessing of a factory that names none: that of most networks trained on ImageNet."""


def load(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing]:
    """Call the factory `name`, `package.module:attribute`; the current directory is importable.

    The factory returns an nn.Module, or (nn.Module, Preprocessing). Without `weights` the module
    is taken as it comes, so the factory has to load its own. `seed:N` seeds torch before the call.
    """
    seed = checkpoint.seed_of(weights)
    with _current_directory_importable():
        factory = _import(name)
        with nullcontext() if seed is None else checkpoint.seeded(seed):
            module, preprocessing = _result(name, _call(name, factory))
    if weights is not None and seed is None:
        checkpoint.fill(module, checkpoint.read(weights), weights)
    return module, preprocessing


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _import(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"model: {name}: {error}; run from the directory that holds the module, "
            f"or install what it needs"
        ) from error
    except (Exception, SystemExit) as error:  # the user's code: whatever it raises is its fault
        raise UsageError(f"model: {name}: importing it raised {_brief(error)}") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        raise UsageError(
            f"model: {name}: {module_name} ({module.__file__}) has no {attribute!r}; "
            f"name a function in it that returns the network"
        )
    if not callable(factory) or isinstance(factory, nn.Module):
        raise UsageError(
            f"model: {name}: {attribute} is a {type(factory).__name__}; expected a function "
            f"that returns the network, e.g. def {attribute}(): return Net()"
        )
    return factory


def _call(name: str, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # it may also try to end the process
        raise UsageError(f"model: {name}: calling it raised {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    """The error with the place in the user's code where it happened."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({at.filename}, line {at.lineno})"


def _result(name: str, result: Any) -> tuple[nn.Module, Preprocessing]:
    match result:
        case nn.Module():
            return result, IMAGENET
        case (nn.Module() as module, Preprocessing() as preprocessing):
            _check(name, preprocessing)
            return module, preprocessing
    raise UsageError(
        f"model: {name}: returned {_describe(result)}; expected an nn.Module, "
        f"or (nn.Module, zfscale.Preprocessing)"
    )


def _check(name: str, recipe: Preprocessing) -> None:
    """Raise UsageError for a preprocessing that no image can go through."""
    try:
        TypeAdapter(Preprocessing).validate_python(asdict(recipe))
    except ValidationError as error:
        wrong = error.errors()[0]
        key, value, expected = wrong["loc"][0], wrong["input"], wrong["msg"]
    else:
        sides = {"resize": (recipe.resize or 1,), "crop": recipe.crop, "scale": (recipe.scale,)}
        small = [key for key, values in sides.items() if min(values) <= 0]
        if not small and 0 not in recipe.std:
            return
        key = small[0] if small else "std"
        value, expected = getattr(recipe, key), "above 0" if small else "other than 0"
    raise UsageError(f"model: {name}: its preprocessing has {key} {value!r}: {expected}")


def _describe(result: Any) -> str:
    if isinstance(result, tuple):
        return f"({', '.join(type(part).__name__ for part in result)})"
    return f"a {type(result).__name__}"
