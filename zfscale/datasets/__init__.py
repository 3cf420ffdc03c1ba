"""Data sets that are made, not downloaded: they know where the evidence for a class lies."""
