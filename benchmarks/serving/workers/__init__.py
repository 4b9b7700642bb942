"""Processes that do the jobs of a comparison: clients of a server, or vLLM without one."""
