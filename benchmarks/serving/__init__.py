"""Load on servers: ours and `vllm serve`, beside vLLM without a server."""
