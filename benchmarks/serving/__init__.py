"""Load on servers: ours, `vllm serve`, and vLLM without one."""
