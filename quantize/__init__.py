"""Makes a checkpoint smaller and faster, and measures through the serving engine how much quality that costs.

    schemes.py      the quantization schemes
    preflight.py    refuses what can't be served here, before anything heavy is imported
    methods.py      how the weights are rounded
    calibration.py  the rows for calibration, and those for choosing between attempts
    weights.py      quantizes the weights, through llm-compressor or bitsandbytes
    sensitivity.py  which blocks lose most
    attempts.py     the order of attempts
    race.py         how much faster the result is, in interleaved rounds
    report.py       what changed
    gate.py         whether too much quality may be lost, and how many rows would be enough to tell
    run.py          measure, quantize, measure, decide

Importing this package needs neither torch nor vLLM. From Python, call `tuneserve.api.quantize`.
"""

import sys

from tuneserve.quantize.report import Report
from tuneserve.quantize.run import quantize
from tuneserve.quantize.schemes import SCHEMES, Scheme
from tuneserve.verbs import Verb

__all__ = ["SCHEMES", "Report", "Scheme", "quantize"]

sys.modules[__name__].__class__ = Verb
