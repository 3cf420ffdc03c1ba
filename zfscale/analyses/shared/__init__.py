"""What several analyses share: types of options, and the choice of images."""
