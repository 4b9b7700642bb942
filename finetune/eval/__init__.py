"""Evaluation of a model in memory on held-out rows, and calibration of its confidence."""
