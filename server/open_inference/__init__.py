"""The Open Inference Protocol, on top of the tuneserve.v1 services."""
