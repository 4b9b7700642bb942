"""Speed of training, and quality of the trained models."""
