"""correspondence: does hiding one part change the features of different images alike?"""

from zfscale.analyses.correspondence.analysis import Correspondence

__all__ = ["Correspondence"]
