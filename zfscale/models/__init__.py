"""Networks by name, with their weights and their preprocessing.

`sources` holds where models come from, one file a prefix; `networks` those of this package, one
file a network; `factory` calls a function of a user's; `checkpoint` reads weights. Knows local
files only: whoever has a URL makes it local first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import torch

from zfscale.convnet.network import Network
from zfscale.errors import UsageError
from zfscale.models import checkpoint, factory, sources
from zfscale.models.summary import table

__all__ = ["fingerprint", "load", "table"]


def load(model: str, weights: str | None, device: str = "cpu") -> Network:
    """The network of a job, ready to observe: in evaluation mode, channels last, on `device`.

    `model` is PREFIX:NAME for a prefix of `sources`, or `package.module:factory`; `weights` a
    local file, `seed:N`, or None for those that come with the model.
    A seed gives the networks of this package He initialisation, and others their own.
    Raises UsageError naming what cannot be found, read or fitted together.
    """
    prefix, colon, name = model.partition(":")
    if not (prefix and colon and name):
        known = (sources.source(each) for each in sources.prefixes())
        forms = ", ".join(each.FORM for each in known if each is not None)
        raise UsageError(f"model: {model!r}: expected {forms} or package.module:factory")
    source = sources.source(prefix)
    if source is None:
        module, preprocessing = factory.load(model, weights)
    else:
        module, preprocessing = source.load(name, weights)
    checkpoint.check_finite(module, weights or model)
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
