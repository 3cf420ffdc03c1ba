"""Occlusion without doing everything again: only what an occluder changes is computed."""
