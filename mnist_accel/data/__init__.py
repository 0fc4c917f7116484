"""Data sets: get, verify, cache, draw, batch and augment."""
