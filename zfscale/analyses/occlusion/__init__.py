"""occlusion: which parts of an image the features and the classifier look at."""

from zfscale.analyses.occlusion.analysis import Occlusion

__all__ = ["Occlusion"]
