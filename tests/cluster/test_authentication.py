"""Which token a cluster is sent, and what is said where it asks for another."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from zfscale.cluster import authentication, session
from zfscale.cluster.authentication import Token, dashboard_refuses, find_token, head_refuses
from zfscale.errors import UsageError

HERE = "127.0.0.1"
AWAY = "192.0.2.77"  # reserved for documentation: no machine has it
GOOD = Token("good", "test")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, in an environment that says nothing of tokens."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        # Set first, so that what a test sets is undone after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def token_file(home: Path) -> Path:
    """The file that `ray get-auth-token --generate` writes."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("good\n")
    return home / ".ray" / "auth_token"


def cluster(accepts: str | None) -> Callable[[Token | None], bool]:
    """A cluster that asks for this token, or for none."""
    return lambda token: accepts is not None and (token is None or token.value != accepts)


def test_the_token_is_found_where_ray_looks_for_it(token_file: Path, tmp_path: Path) -> None:
    assert find_token({}) == Token("good", str(token_file))
    other = tmp_path / "other"
    other.write_text("more")
    by_path = {"RAY_AUTH_TOKEN_PATH": str(other)}
    assert find_token(by_path) == Token("more", str(other))
    assert find_token(by_path | {"RAY_AUTH_TOKEN": "most"}) == Token("most", "RAY_AUTH_TOKEN")
    assert find_token({"RAY_AUTH_TOKEN_PATH": "/no/such"}) is None
    assert "most" not in repr(Token("most", "RAY_AUTH_TOKEN"))


def test_a_cluster_on_this_machine_is_sent_the_token_of_this_machine(token_file: Path) -> None:
    assert authentication.must_be_told("--address A", HERE, cluster("good"))
    assert authentication.must_be_told("--address A", "localhost", cluster("good"))


def test_a_cluster_that_asks_for_no_token_is_sent_none(token_file: Path) -> None:
    assert not authentication.must_be_told("--address A", HERE, cluster(None))


def test_ray_is_told_before_it_is_imported_or_the_user_is(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(authentication.sys.modules, "ray", object())
    with pytest.raises(UsageError, match=r"imported before .* RAY_AUTH_MODE=token in the env"):
        authentication.ensure_token("--address A", HERE, cluster("good"))
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.delitem(authentication.sys.modules, "ray")
    authentication.ensure_token("--address A", HERE, cluster("good"))
    assert os.environ["RAY_AUTH_MODE"] == "token"
    authentication.ensure_token("--address A", AWAY, cluster("good"))  # told: it is sent anywhere


@pytest.mark.parametrize(
    ("host", "environment", "accepts", "message"),
    [
        (HERE, {}, "another", r"refuses the one in .*auth_token: set RAY_AUTH_MODE=token and RAY_"),
        (AWAY, {}, "good", r"set RAY_AUTH_MODE=token to send the one in .*auth_token$"),
        (HERE, {"RAY_AUTH_MODE": "disabled"}, "good", r"token: set RAY_AUTH_MODE=token to send"),
        (HERE, {"RAY_AUTH_MODE": "token"}, "another", r"auth_token: set RAY_AUTH_TOKEN to what"),
        (HERE, {"RAY_AUTH_TOKEN_PATH": "/no"}, "good", r"token: set RAY_AUTH_MODE=token and RAY_"),
        (AWAY, {"RAY_AUTH_TOKEN_PATH": "/no"}, "good", r"token: set RAY_AUTH_MODE=token and RAY_"),
    ],
)
def test_one_line_says_which_variable_to_set(
    host: str, environment: dict[str, str], accepts: str, message: str,
    token_file: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message) as caught:
        authentication.must_be_told("--address A", host, cluster(accepts))
    assert str(caught.value).startswith("--address A: the cluster asks for a token")
    assert "\n" not in str(caught.value)


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A server that asks for the token as Ray's dashboard does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization")
            code = {None: 401, "Bearer good": 200}.get(sent, 403)
            self.send_response(code if self.path == "/api/version" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer((HERE, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{HERE}:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_dashboard_is_asked(dashboard: str) -> None:
    assert dashboard_refuses(dashboard, None)
    assert dashboard_refuses(dashboard + "/", Token("bad", "test"))
    assert not dashboard_refuses(dashboard, GOOD)
    assert not dashboard_refuses(dashboard + "/elsewhere", None)  # 404 is not about tokens
    assert not dashboard_refuses(f"http://{HERE}:9", None)


@pytest.fixture
def head() -> Iterator[str]:
    """A server that asks for the token as the head of a Ray cluster does."""
    grpc = pytest.importorskip("grpc")

    class Handler(grpc.GenericRpcHandler):
        def service(self, call: Any) -> Any:
            if call.method != "/ray.rpc.NodeInfoGcsService/GetClusterId":
                return None
            sent = dict(call.invocation_metadata).get("authorization")

            def answer(request: bytes, context: Any) -> bytes:
                if sent != "Bearer good":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Handler(),))
    port = server.add_insecure_port(f"{HERE}:0")
    server.start()
    yield f"{HERE}:{port}"
    server.stop(None).wait()


def test_a_head_is_asked(head: str) -> None:
    assert head_refuses(head, None)
    assert head_refuses(head, Token("bad", "test"))
    assert not head_refuses(head, GOOD)
    assert not head_refuses(f"{HERE}:9", None)


def test_a_session_asks_before_ray_is_started(head: str, home: Path) -> None:
    refused = pytest.raises(UsageError, match=rf"--address {head}: the cluster asks for a token")
    with refused, session.session(head):
        pass


def test_a_session_that_finds_the_cluster_by_itself_asks_too(
    head: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head)
    with pytest.raises(UsageError, match="asks for a token"), session.session("auto"):
        pass
