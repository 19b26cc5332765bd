"""Recipes: how models are composed, as plain data. Nothing here imports torch."""
