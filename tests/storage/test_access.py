"""A store that does not let us in: one line with the address and the setting, on every way in."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from zfscale import collection as sources
from zfscale.errors import UsageError
from zfscale.records import ImageRef, Shard
from zfscale.storage import files, open_storage
from zfscale.storage.access import reaching
from zfscale.storage.base import probe


class Doorman(BaseHTTPRequestHandler):
    """Answers everything as S3 answers who has no permission."""

    def _forbid(self) -> None:
        text = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forbid  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def doorman(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """S3 is a server on the loopback interface that forbids everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Doorman) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield
        server.shutdown()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def stranger(doorman: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A URL for which there are no credentials anywhere."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return f"s3://bucket-{uuid.uuid4().hex}/place"


@pytest.fixture
def forbidden(doorman: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL for which there are credentials without permission."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "known")
    return f"s3://bucket-{uuid.uuid4().hex}/place"


def _write(url: str) -> None:
    with open_storage(url).writing("a") as stream:
        stream.write(b"1")


WAYS: dict[str, Callable[[str], Any]] = {
    "find a folder": lambda url: sources.find([url]),
    "find a tar": lambda url: sources.find([f"{url}/a.tar"]),
    "find by a glob": lambda url: sources.find([f"{url}/*.tar"]),
    "index a tar": lambda url: sources.index(Shard("webdataset", f"{url}/a.tar", 10240)),
    "index a file of Parquet": lambda url: sources.index(Shard("parquet", f"{url}/a.pq", 100)),
    "index a class folder": lambda url: sources.index(
        Shard("folder", f"{url}/cat", 0, class_folder=True)
    ),
    "fetch": lambda url: sources.fetch(ImageRef(f"{url}/a.jpg", 0, 10)),
    "copy": lambda url: files.local_copy(f"{url}/weights.safetensors"),
    "write a gallery": lambda url: open_storage(url).write("index.html", b""),
    "probe": lambda url: probe(open_storage(url)),
    "read": lambda url: open_storage(url).read("a"),
    "open": lambda url: open_storage(url).open("a"),
    "publish": lambda url: open_storage(url).publish("a", b""),
    "write": _write,
    "create": lambda url: open_storage(url).create("a", b""),
    "exists": lambda url: open_storage(url).exists("a"),
    "list": lambda url: open_storage(url).list(),
    "delete": lambda url: open_storage(url).delete("a"),
}


def _messages(url: str) -> dict[str, str]:
    """What each way in says."""
    found = {}
    for way, enter in WAYS.items():
        with pytest.raises(UsageError) as caught:
            pytest.fail(f"{way} gave {enter(url)!r} instead of an error")
        found[way] = str(caught.value)
    return found


def test_without_credentials(stranger: str) -> None:
    for way, message in _messages(stranger).items():
        assert message.startswith(stranger), way
        assert "no credentials" in message, way
        assert "AWS_ACCESS_KEY_ID" in message, way
        assert "\n" not in message, way


def test_without_permission(forbidden: str) -> None:
    for way, message in _messages(forbidden).items():
        assert message.startswith(forbidden), way
        assert "access is denied" in message, way
        assert "AWS_ACCESS_KEY_ID" in message, way
        assert "\n" not in message, way


def test_a_store_that_does_not_answer_is_an_error_that_may_pass(
    monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fs, _ = files.locate(forbidden)
    monkeypatch.setattr(fs, "retries", 1)
    with pytest.raises(OSError, match="Could not connect") as caught:
        files.read_whole(forbidden)
    assert caught.value.errno is not None  # without a number it would pass for a damaged file


@pytest.mark.parametrize(
    ("url", "setting"),
    [
        ("gs://bucket/a", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("abfs://bucket/a", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("other://bucket/a", "'other'"),
    ],
)
def test_other_stores_name_their_own_settings(url: str, setting: str) -> None:
    def enter(error: Exception) -> str:
        with pytest.raises(UsageError) as caught, reaching(url):
            raise error
        return str(caught.value)

    class DefaultCredentialsError(Exception):
        pass

    for error in (PermissionError("no"), DefaultCredentialsError("none\nfound.")):
        assert setting in enter(error)
        assert "\n" not in enter(error)


def test_what_is_no_error_of_a_store_stays_as_it_is() -> None:
    for url, error in (
        ("/local/file", PermissionError("no")),
        ("s3://bucket/a", FileNotFoundError("gone")),
        ("s3://bucket/a", TimeoutError("slow")),
        ("s3://bucket/a", ZeroDivisionError()),
        ("s3://bucket/a", UsageError("said before")),
    ):
        with pytest.raises(type(error)) as caught, reaching(url):
            raise error
        assert caught.value is error


def test_no_library_of_a_store_is_imported() -> None:
    code = "import sys, zfscale.storage; print({'botocore', 's3fs'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
