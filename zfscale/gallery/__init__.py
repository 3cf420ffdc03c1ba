"""The gallery: a finished run as static HTML that opens from the disk, without a server.

`build` makes it. Names from the run (keys, classes, layers) are never trusted: they reach a page
through autoescaping, the search data through escaped JSON, and a file name through `slugs`.
"""

from __future__ import annotations

from zfscale.gallery.build import build

__all__ = ["build"]
