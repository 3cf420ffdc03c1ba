"""A storage on the local disk."""

import pytest

from zfscale.storage import open_storage


@pytest.fixture
def directory(tmp_path):
    """An empty storage in a directory."""
    return open_storage(str(tmp_path / "run"))
