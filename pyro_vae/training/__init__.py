"""Training: the epoch loop, and what it measures."""
