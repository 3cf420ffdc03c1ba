"""scan: the strongest images of every feature, its statistics, and predictions."""

from zfscale.analyses.scan.analysis import Scan

__all__ = ["Scan"]
