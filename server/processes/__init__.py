"""A server of several processes behind one port, each complete, with its own engines. Knows neither calls nor vLLM."""
