"""What one GPU makes of our server, of `vllm serve` and of vLLM without a server, in a few minutes (`__main__.py`)."""
