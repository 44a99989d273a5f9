"""Probabilistic segmentation of blended galaxies."""
