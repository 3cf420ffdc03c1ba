"""What several analyses share: options, the choice of images, rows collected one by one."""
