"""The analysis `scan`."""
