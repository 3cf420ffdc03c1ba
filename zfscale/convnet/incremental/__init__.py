"""Occlusion sensitivity that computes only what each occluder changes."""
