"""What all tests share: quiet threads, reproducible draws, and the places of images."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Before torch is imported, here and in the processes that tests start. Side by side with other
# test processes, more threads than cores would only wait for each other.
_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("OMP_NUM_THREADS", _THREADS)
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
