"""Attention over block lists: every mask of the system is a list of key blocks per query block."""
