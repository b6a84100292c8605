"""Recipes: what one is, what it would take, running it, and whether a store is what it made."""
