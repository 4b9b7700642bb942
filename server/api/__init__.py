"""The services of tuneserve.v1."""
