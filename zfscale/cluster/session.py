"""A connection to Ray: an embedded one that lives and dies with this process, or a cluster's.

Knows how Ray is started and stopped; not what runs on it.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

from zfscale.errors import UsageError, ZfscaleError

LOOPBACK = "127.0.0.1"
OBJECT_STORE = 96 * 2**20
"""Bytes. Only tasks and receipts travel, and Ray takes no less than 75 MiB."""

_EMBEDDED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray resolves 127.0.0.1 to the address that other machines see, unless it is told
    # that this node will never join any; the name of the switch is historical.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@cache
def _token() -> Mapping[str, str]:
    """A password of embedded Ray, decided once: Ray keeps what it sees at its first import.

    Other users of this machine reach its loopback, too: they are asked for a token that only
    this process and its children know. Where Ray was imported before, it is too late for one.
    """
    if "ray" in sys.modules:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def ray_module() -> Any:
    """The module `ray`. Raises UsageError with the way out where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "Ray is not installed: run with --serial, or install it: pip install 'ray[default]'"
        ) from error
    return ray


@contextmanager
def session(address: str | None, at_least_cpus: int = 0) -> Iterator[Any]:
    """Connect, yield the module `ray`, disconnect.

    Embedded Ray counts the cores of this machine, or `at_least_cpus` where that is more.
    """
    with ExitStack() as stack:
        if address is None:
            # Of our own, so that no other user can open its sockets, no other program takes this
            # Ray for a cluster to join, and its logs go with it. Sockets need a short path.
            folder = stack.enter_context(
                TemporaryDirectory(prefix="zfscale-", dir="/tmp", ignore_cleanup_errors=True)
            )
            stack.enter_context(_environment({**_EMBEDDED, **_token()}))
        ray = ray_module()
        stack.callback(ray.shutdown)
        with _handler_kept(signal.SIGTERM):
            if address is None:
                _start_embedded(ray, at_least_cpus, folder)
            else:
                _join(ray, address)
        # Ray prints on stdout what befalls its processes; the pool says it in its own words.
        ray._private.worker._worker_logs_enabled = False
        yield ray


def _start_embedded(ray: Any, at_least_cpus: int, folder: str) -> None:
    ray.init(
        address="local",  # without it, RAY_ADDRESS in the environment would be joined
        num_cpus=max(at_least_cpus, len(os.sched_getaffinity(0))),
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address=LOOPBACK,
        _temp_dir=folder,
    )
    found = ray.util.get_node_ip_address()
    if found != LOOPBACK:
        raise ZfscaleError(
            f"embedded Ray would listen on {found} instead of {LOOPBACK}, because Ray was imported "
            "before: set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in the environment, or import it later"
        )


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there: {error}") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that Ray and the processes it starts see, put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _handler_kept(number: signal.Signals) -> Iterator[None]:
    """Ray replaces the handler of SIGTERM by one that exits at once: put ours back."""
    handler = signal.getsignal(number)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)
