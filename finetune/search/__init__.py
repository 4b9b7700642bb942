"""Hyperparameter search: many runs of one config."""
