"""A connection to Ray: an embedded Ray that lives and dies with this process, or a cluster.

Knows how Ray is started, joined and stopped; not what runs on it.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from zfscale.cluster.authentication import ensure_token, head_refuses, must_be_told
from zfscale.errors import UsageError, ZfscaleError

LOOPBACK = "127.0.0.1"
OBJECT_STORE = 96 * 2**20
"""Bytes. Only tasks and receipts pass through it, and Ray takes no less than 75 MiB."""

_EMBEDDED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray resolves 127.0.0.1 to the address that other machines see, unless it is told
    # that this node will never join any; the name of the switch is historical.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@cache
def _embedded_token() -> Mapping[str, str]:
    """Variables with a token for embedded Ray, drawn once per process.

    Other users of this machine can reach its loopback interface, too: Ray asks them for a token
    that only this process and its children know. Ray reads these variables when it is first
    imported, so a process that has imported it before keeps what it read then.
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

    `address` None starts an embedded Ray, which counts the cores of this machine, or
    `at_least_cpus` where that is more. Raises UsageError if no cluster answers at `address`, or
    if it asks for a token that this process does not have.
    """
    with ExitStack() as stack:
        if address is None:
            # A folder of our own: no other user can open its sockets, no other program takes this
            # Ray for a cluster to join, and its logs go with it. Sockets need a short path.
            folder = stack.enter_context(
                TemporaryDirectory(prefix="zfscale-", dir="/tmp", ignore_cleanup_errors=True)
            )
            stack.enter_context(_environment({**_EMBEDDED, **_embedded_token()}))
        elif address != "auto":
            # Before Ray is imported: it reads then whether it has to send a token.
            ensure_token(f"--address {address}", _host(address), partial(head_refuses, address))
        ray = ray_module()
        stack.callback(ray.shutdown)
        with _handler_kept(signal.SIGTERM):
            if address is None:
                _start_embedded(ray, at_least_cpus, folder)
            else:
                _join(ray, address)
        # Ray prints on stdout what happens to its processes; the pool reports it by itself.
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
    node_address = ray.util.get_node_ip_address()
    if node_address != LOOPBACK:
        raise ZfscaleError(
            f"embedded Ray would listen on {node_address} instead of {LOOPBACK}, because Ray was "
            "imported before: set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in the environment, or "
            "import Ray later"
        )


def _join(ray: Any, address: str) -> None:
    try:
        if address == "auto":
            # Ray sends the token of this machine to a cluster that it finds by itself. Ask anyway:
            # where there is none, Ray would try for half a minute and say that nothing answers.
            head = ray._private.services.canonicalize_bootstrap_address(address)
            must_be_told("--address auto", _host(head), partial(head_refuses, head))
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there: {error}") from error


def _host(address: str) -> str:
    return urlsplit(address if "//" in address else f"//{address}").hostname or ""


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
