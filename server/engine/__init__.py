"""The engine: its interface, and the implementation on vLLM."""

import sys

# Whatever imports vLLM here does so after this: on_cpu/zen.py says why, and loads it.
sys.modules.setdefault("zentorch", None)  # type: ignore[arg-type]
