"""The networks of this package: one file = one network = one `zfscale:NAME`.

A file NAME.py (dashes are underscores in the name of the file) cites its source and holds

    PREPROCESSING: Preprocessing            from pixels to the input
    def build(classes: int = N) -> Module   the network, its layers named as in the field
    WEIGHTS: str                            optional: a file of weights/ that ships with it

Nothing else names it.
"""
