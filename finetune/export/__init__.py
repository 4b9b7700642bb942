"""Makes a checkpoint of the trained weights: merges, rounds, and verifies them before they are kept."""
