"""Makes a checkpoint smaller and faster, and measures through the serving engine what that cost.

    schemes.py      what there is to choose from
    preflight.py    what can't be served here, refused before anything heavy is imported
    methods.py      how the weights are rounded
    calibration.py  the rows that most methods look at, and those that attempts are chosen on
    weights.py      the quantizing itself, through llm-compressor or bitsandbytes
    sensitivity.py  which blocks lose most
    attempts.py     what is tried after what
    race.py         how much faster, in rounds in turns
    report.py       what changed
    gate.py         whether too much may be lost, and how many rows would tell
    run.py          measure, quantize, measure, decide

Importing this package needs neither torch nor vLLM. Called, it is `tuneserve.api.quantize`.
"""

import sys

from tuneserve.quantize.report import Report
from tuneserve.quantize.run import quantize
from tuneserve.quantize.schemes import SCHEMES, Scheme
from tuneserve.verbs import Verb

__all__ = ["SCHEMES", "Report", "Scheme", "quantize"]

sys.modules[__name__].__class__ = Verb
