"""Fine-tune, quantize and serve models over gRPC on vLLM."""

__version__ = "0.1.0"
