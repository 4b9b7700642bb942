"""The engine: its interface, and the implementation on vLLM."""
