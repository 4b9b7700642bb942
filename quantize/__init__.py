"""Makes a checkpoint smaller and faster, and measures through the serving engine what that cost.

    schemes.py    what there is to choose from
    preflight.py  what can't be served here, refused before anything heavy is imported
    weights.py    the quantizing itself, through llm-compressor or bitsandbytes
    run.py        measure, quantize, measure, decide

Importing this package needs neither torch nor vLLM.
"""

from tuneserve.quantize.run import Report, quantize
from tuneserve.quantize.schemes import SCHEMES, Scheme

__all__ = ["SCHEMES", "Report", "Scheme", "quantize"]
