"""From one activation down to the pixels: switches, unpooling, transposed filters."""
