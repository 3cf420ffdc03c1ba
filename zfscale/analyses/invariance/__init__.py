"""invariance: how far features move when an image is transformed."""

from zfscale.analyses.invariance.analysis import Invariance

__all__ = ["Invariance"]
