"""Image formats: one file = one format, found by the endings of file names."""
