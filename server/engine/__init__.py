"""The engine: what the server asks of it, and vLLM behind that."""
