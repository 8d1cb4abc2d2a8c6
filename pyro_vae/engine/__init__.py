"""Stochastic variational inference for any pair of Pyro programs: steps, graphs, importance weights, processes."""
