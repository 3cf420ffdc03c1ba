"""A network as a graph of operations, and the geometry of its receptive fields."""
