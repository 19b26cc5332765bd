"""Weights and compositions in files: our own format, and the names other implementations use."""
