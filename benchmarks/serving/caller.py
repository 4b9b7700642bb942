"""One light caller beside a heavy load: flood.py and crowd.py measure how long it waits.

It is a process of its own, with the key in TUNESERVE_KEY. It classifies one text after the other with 50 ms between,
and prints its waits in seconds and its errors as JSON.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

import grpc
import numpy as np

from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

_BETWEEN = 0.05


class Caller:
    """The caller's process; it runs from the construction on."""

    def __init__(self, target: str, model: str, seconds: float) -> None:
        command = [sys.executable, "-m", __name__, target, model, str(seconds)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)

    def figures(self) -> dict[str, Any]:
        """Waits for the process to end. Returns its figures; times in milliseconds."""
        found = json.loads(self._process.communicate(timeout=120)[0])
        waits = 1000 * np.array(found["waits"])
        return {
            "caller_calls": len(waits),
            "caller_ms_p50": round(float(np.median(waits)), 1),
            "caller_ms_p99": round(float(np.quantile(waits, 0.99)), 1),
            "caller_ms_max": round(float(waits.max()), 1),
            "caller_errors": found["errors"],
        }


def ask(target: str, model: str, seconds: float) -> dict[str, Any]:
    """Sends calls for `seconds`. Returns the waits, and the errors by status."""
    request = pb.ClassifyRequest(model=model, inputs=[pb.ClassifyInput(text="the film was good")])
    metadata = [("authorization", "Bearer " + os.environ.get("TUNESERVE_KEY", ""))]
    waits: list[float] = []
    errors: dict[str, int] = {}
    with grpc.insecure_channel(target) as channel:
        stub, end = ClassificationServiceStub(channel), time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.perf_counter()
            try:
                stub.Classify(request, metadata=metadata, timeout=60)
            except grpc.RpcError as error:
                code = error.code().name
                errors[code] = errors.get(code, 0) + 1
            waits.append(time.perf_counter() - begin)
            time.sleep(_BETWEEN)
    return {"waits": waits, "errors": errors}


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
