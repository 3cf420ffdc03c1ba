"""The mathematics of convnets: graph, geometry, switches, unpooling, deconvolution, top-k.

Torch and numpy only. Knows no files, no cluster and no named networks.
"""
