"""The Open Inference Protocol on top of the services of tuneserve.v1."""
