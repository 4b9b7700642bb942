"""`make bench`: serves checkpoints one after the other and measures each in a closed loop.

Regime: one server process with one model at a time; classifiers with single texts and with batches of 64 on 16
connections, generation streamed on 8. A table for each; the last line of stdout is one JSON list.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tuneserve import checkpoint
from tuneserve.benchmarks.calls import Settings
from tuneserve.benchmarks.load import Result, run
from tuneserve.benchmarks.report import table
from tuneserve.serving import serving
from tuneserve.v1 import checkpoint_pb2 as pb


def measure(directory: Path) -> list[Result]:
    """Serves one checkpoint and measures it."""
    name = directory.name
    with serving({name: directory}) as addresses:
        settings = Settings(target=addresses.grpc, model=name, connections=8)
        if checkpoint.read_manifest(directory).task == pb.TASK_GENERATION:
            return [run(settings)]
        single = replace(settings, connections=16)
        return [run(single), run(replace(single, connections=4, batch=64))]


def main() -> None:
    """Measures the checkpoints named on the command line."""
    results = [result for path in sys.argv[1:] for result in measure(Path(path))]
    for result in results:
        Console().print(table(result))
    print(json.dumps([result.to_json() for result in results], separators=(",", ":")))


if __name__ == "__main__":
    main()
