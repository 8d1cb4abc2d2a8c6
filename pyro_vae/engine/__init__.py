"""Stochastic variational inference for any pair of Pyro programs.

A model and a guide are run together (`programs`), weighted (`importance`) and trained (`svi`), with
their steps as graphs of tensor operations (`graphs`), in one or several processes (`distributed`).
Nothing here knows what the programs are about.
"""
