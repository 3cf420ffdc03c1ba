"""Ray: a pool of worker processes on this machine or a cluster, and submission of whole jobs.

The only place that imports Ray, and it does so inside functions: a machine without Ray still
runs every job with `--serial`. Knows tasks and receipts; not what a task computes.
"""
