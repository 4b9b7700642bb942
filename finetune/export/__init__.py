"""The trained weights as a checkpoint: merged, rounded, and compared before they are kept."""
