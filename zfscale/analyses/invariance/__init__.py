"""The analysis `invariance`."""
