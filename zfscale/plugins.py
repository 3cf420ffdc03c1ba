"""What installed packages add by entry points: loaded, or told as the package's fault."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from zfscale.errors import UsageError


def load(entry: EntryPoint, kind: str) -> Any:
    """What an entry point leads to; `kind` says what it adds, e.g. "format".

    Raises UsageError naming the package where it cannot be loaded.
    """
    try:
        return entry.load()
    except Exception as error:  # it is a package's code: whatever it raises
        raise UsageError(
            f"{described(entry, kind)} ({entry.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def described(entry: EntryPoint, kind: str) -> str:
    """What an entry point adds, and which package does so, for messages."""
    package = entry.dist.name if entry.dist is not None else "?"
    return f"the {kind} {entry.name} of the package {package}"
