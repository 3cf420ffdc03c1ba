"""Networks by name: one file = one network = one `zfscale:NAME`.

A file NAME.py of this package (dashes written as underscores) cites its source and holds

    PREPROCESSING: Preprocessing            from pixels to the input
    def build(classes: int = N) -> Module   the network, its layers named as in the field
    WEIGHTS: str                            optional: a file of weights/ that ships with it

Adding a network is adding a file here; nothing else names it. Modules with an underscore are
not networks: they load those of this package, of torchvision and of the user, and their weights.
Knows local files only: whoever has a URL makes it local first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import torch

from zfscale.convnet.network import Network
from zfscale.errors import UsageError
from zfscale.models import checkpoint as _checkpoint
from zfscale.models import factory as _factory
from zfscale.models import torchvision as _torchvision
from zfscale.models import zfscale as _zfscale
from zfscale.models.summary import table

__all__ = ["fingerprint", "load", "names", "table"]


def names() -> list[str]:
    """The networks of this package, as they stand after `zfscale:`."""
    return _zfscale.names()


def load(model: str, weights: str | None, device: str = "cpu") -> Network:
    """The network of a job, ready to observe: in evaluation mode, channels last, on `device`.

    `model` is `zfscale:NAME`, `torchvision:NAME[@WEIGHTS]` or `package.module:factory`;
    `weights` a local file, `seed:N`, or None for those that come with the model.
    A seed gives the networks of this package He initialisation, and others their own.
    Raises UsageError naming what cannot be found, read or fitted together.
    """
    origin, colon, name = model.partition(":")
    if not (origin and colon and name):
        raise UsageError(
            f"model: {model!r}: expected zfscale:NAME ({', '.join(names())}), "
            f"torchvision:NAME[@WEIGHTS] or package.module:factory"
        )
    match origin:
        case "zfscale":
            module, preprocessing = _zfscale.load(name, weights)
        case "torchvision":
            module, preprocessing = _torchvision.load(name, weights)
        case _:
            module, preprocessing = _factory.load(model, weights)
    _checkpoint.check_finite(module, weights or model)
    return Network(module, preprocessing, name=model, device=device)


def fingerprint(network: Network) -> str:
    """SHA-256 of all that decides what the network computes: weights, layers, preprocessing.

    Parameters and buffers count by name, shape, type and bytes, in the order of their names;
    neither the device nor the memory format makes a difference.
    """
    state = dict(network.module.named_parameters(remove_duplicate=False))
    state |= dict(network.module.named_buffers(remove_duplicate=False))
    head = {
        "architecture": str(network.module),
        "preprocessing": asdict(network.preprocessing),
        "tensors": [
            (name, list(state[name].shape), str(state[name].dtype)) for name in sorted(state)
        ],
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(state):
        flat = state[name].detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
