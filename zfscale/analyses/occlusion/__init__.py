"""The analysis `occlusion`."""
