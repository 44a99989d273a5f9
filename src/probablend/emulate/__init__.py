"""Isolated galaxies, blends and their truth."""
