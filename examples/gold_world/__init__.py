"""A world of instructions with an exact true quality, and the SEAM experiments in it."""
