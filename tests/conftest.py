"""What all tests share: quiet threads, reproducible draws, and the places of images."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from hypothesis import settings

from zfscale.convnet.runtime import before_torch

ROOT = Path(__file__).parents[1]

# Before torch is imported, here and in the processes that tests start. Side by side with other
# test processes, more threads than cores would only wait for each other.
_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("OMP_NUM_THREADS", _THREADS)
before_torch()
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray reads it when it is first imported, by whatever test: embedded Ray stays on the loopback.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# Time limits on single examples fail on busy machines; CI draws the same examples every time.
settings.register_profile("zfscale", deadline=None)
settings.register_profile("zfscale-ci", deadline=None, derandomize=True)
settings.load_profile("zfscale-ci" if os.environ.get("CI") else "zfscale")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws the same random numbers, whichever tests ran before it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images: `$ZFSCALE_DATA`, or `../shared/data` beside the repository."""
    place = os.environ.get("ZFSCALE_DATA")
    folder = Path(place) if place else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set ZFSCALE_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def parts_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small `parts` data set: 60 rendered images in WebDataset tars. Read it, never write it."""
    from zfscale.datasets import parts

    folder = tmp_path_factory.mktemp("parts")
    parts.write(str(folder), count=60, seed=0)
    return folder


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server on the loopback interface."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["directory", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def url(request, tmp_path, monkeypatch):
    """The URL of an empty run on every kind of storage."""
    if request.param == "directory":
        return str(tmp_path / "runs" / "first")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/run"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"test-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/run"


@pytest.fixture
def storage(url):
    """The storage there."""
    from zfscale.storage import open_storage

    return open_storage(url)
