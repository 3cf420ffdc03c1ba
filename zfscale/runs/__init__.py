"""The run store: a directory or an object store that holds everything a run computed.

    storage   bytes under a path: published whole, or created once
    segments  immutable tables of one task
    tables    final Parquet datasets
    arrays    final Zarr arrays
    manifest  one snapshot of what a run holds, with its checksum
    ledger    which tasks are committed: the commit protocol
    run       run.json, derived from the manifest
    digest    one hash of all results
    gc        what nothing refers to

Knows no network, no Ray and no images: docs/formats.md describes what lies in it.
"""
