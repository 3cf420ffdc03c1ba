"""Shared by the tests of sources: the generator of bad files, and one preprocessing."""

from __future__ import annotations

import pytest

from zfscale.records import Preprocessing


@pytest.fixture
def preprocessing() -> Preprocessing:
    """Small enough to be quick; the mean colour is easy to recognise."""
    return Preprocessing(resize=64, crop=(56, 56), mean=(100.0, 150.0, 200.0))
