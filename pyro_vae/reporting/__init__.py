"""Figures, images and pages that show what a model has learned."""

from pyro_vae.reporting import figures, views

__all__ = ["figures", "views"]
