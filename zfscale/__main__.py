"""`python -m zfscale` is the command `zfscale`."""

from __future__ import annotations

from zfscale.cli import main

main()
