"""How fast training is, and how good what comes of it."""
