"""Scores of rows: SEAM, RER, their baselines, and what a language model is asked about a row."""
