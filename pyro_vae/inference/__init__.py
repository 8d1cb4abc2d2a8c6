"""Training: one step, the epoch loop, and importance weights, for any pair of Pyro programs."""
