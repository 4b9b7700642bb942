"""Settings looked for: many runs of one config."""
