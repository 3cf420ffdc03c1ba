"""The analysis `correspondence`."""
