"""The token that a Ray cluster may ask for: whether it does, and which one is sent.

Knows Ray's rules for tokens; not what is asked of a cluster afterwards. Ray sends a token where
RAY_AUTH_MODE is `token`, and reads that variable when it is first imported: `ensure_token` must
run before. The token is $RAY_AUTH_TOKEN, else the file $RAY_AUTH_TOKEN_PATH, else
~/.ray/auth_token. See https://docs.ray.io/en/latest/ray-security/token-auth.html
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zfscale.errors import UsageError

TIMEOUT = 10.0
"""Seconds to wait for a cluster that is asked whether it wants a token."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token and the variable or file that it comes from."""

    value: str = field(repr=False)
    origin: str


def find_token(environment: Mapping[str, str]) -> Token | None:
    """The token that Ray would send from this machine, None where there is none."""
    if value := environment.get("RAY_AUTH_TOKEN"):
        return Token(value, "RAY_AUTH_TOKEN")
    file = environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        value = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Token(value, str(file)) if value else None


def sends_token(environment: Mapping[str, str]) -> bool:
    """Whether Ray has been told to send its token."""
    return environment.get("RAY_AUTH_MODE", "").lower() == "token"


def ensure_token(option: str, host: str, refuses: Callable[[Token | None], bool]) -> None:
    """Make Ray send the token that the cluster on `host` asks for, if it asks for one.

    See `must_be_told`. Sets RAY_AUTH_MODE for this process and its children.
    """
    if not must_be_told(option, host, refuses):
        return
    if "ray" in sys.modules:
        raise UsageError(
            f"{option}: the cluster asks for a token, and Ray was imported before it was told to "
            "send one: set RAY_AUTH_MODE=token in the environment"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def must_be_told(option: str, host: str, refuses: Callable[[Token | None], bool]) -> bool:
    """Whether RAY_AUTH_MODE has to be set for Ray to reach the cluster on `host`.

    `refuses` asks the cluster whether it turns down a request with this token, or without one.
    A cluster on this machine gets the token of this machine, as Ray does it for the cluster that
    it finds by itself; any other gets it only if RAY_AUTH_MODE says so already. Raises
    UsageError, which begins with `option`, if the cluster would refuse what Ray can send.
    """
    token = find_token(os.environ)
    told = sends_token(os.environ)
    if not refuses(token if told else None):
        return False
    may_send = told or ("RAY_AUTH_MODE" not in os.environ and is_this_machine(host))
    if token and may_send and not told and not refuses(token):
        return True
    problem = f"{option}: the cluster asks for a token"
    if token and not may_send:
        raise UsageError(f"{problem}: set RAY_AUTH_MODE=token to send the one in {token.origin}")
    other = f", and refuses the one in {token.origin}" if token else ""
    mode = "" if told else "RAY_AUTH_MODE=token and "
    raise UsageError(
        f"{problem}{other}: set {mode}RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its "
        "head node"
    )


def is_this_machine(host: str) -> bool:
    """Whether `host` is an address of this machine: only then can a socket be bound to it."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as bound:
                bound.bind(address)
    except OSError:
        return False
    return True


def dashboard_refuses(address: str, token: Token | None) -> bool:
    """Whether the dashboard at the URL `address` turns a request down for its token.

    False where nothing answers, or something else: that is for Ray to report.
    """
    headers = {"Authorization": f"Bearer {token.value}"} if token else {}
    url = f"{address.rstrip('/')}/api/version"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the caller knows it is http)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):  # noqa: S310
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


def head_refuses(address: str, token: Token | None) -> bool:
    """Whether the head of a cluster, at `host:port`, turns a request down for its token.

    Ray itself would repeat the request for half a minute, and then say that nothing answers.
    False where nothing answers, or something else: that is for Ray to report.
    """
    import grpc  # type: ignore[import-untyped]

    metadata = (("authorization", f"Bearer {token.value}"),) if token else ()
    # The question that every node asks first. Its message is empty, so no schema is needed.
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=TIMEOUT, metadata=metadata)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
