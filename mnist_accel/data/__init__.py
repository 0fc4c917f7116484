"""Gets, verifies, caches, draws, batches and augments the data."""
