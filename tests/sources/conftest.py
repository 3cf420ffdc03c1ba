"""Shared by the tests of sources: the generator of bad files, and one preprocessing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zfscale.records import Preprocessing

# badfiles.py serves several test folders, which share no package.
sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def preprocessing() -> Preprocessing:
    """Small enough to be quick; the mean colour is easy to recognise."""
    return Preprocessing(resize=64, crop=(56, 56), mean=(100.0, 150.0, 200.0))
