"""Activations of features over many images: maxima, top k and statistics, all merged exactly."""
