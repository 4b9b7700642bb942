"""What vLLM lacks on CPUs, for its workers. Each file includes the one before: zen, top_p, seeds, lora, nf4."""
