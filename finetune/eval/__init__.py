"""What a model in memory answers on held-out rows, and calibration of its confidence."""
