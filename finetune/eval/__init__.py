"""What a model in memory answers on held-out rows, and how sure it may be of it."""
