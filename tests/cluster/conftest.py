"""Embedded Ray stays on loopback only if it was asked before the first import of Ray."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
