"""Helpers with no model knowledge: randomness, partitioning, progress."""
