"""What each feature made of each image: maxima, top k and statistics, all merged exactly."""
