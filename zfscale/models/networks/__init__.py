"""The networks of this package: one file = one network = one `zfscale:NAME`."""
