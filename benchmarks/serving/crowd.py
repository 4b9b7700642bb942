"""How many calls in flight of one tenant delay another: a closed loop of single texts, beside one caller.

    python -m tuneserve.benchmarks.serving.crowd localhost:8033 --model sentiment --calls 1000

Regime. The crowd keeps `--calls` calls in flight all the time, 100 on a connection, with the key in
TUNESERVE_CROWD_KEY: each call is repeated as soon as it is answered or refused. The caller is another tenant, with the
key in TUNESERVE_KEY (caller.py); the first calls of the crowd are sent together, a second after the caller's first. All
run on the server's machine, and take their share of it. The last line of stdout is the result as JSON.
"""

import asyncio
import json
import os
import time
from collections import Counter
from typing import Any

import click
import grpc

from tuneserve.benchmarks.serving.caller import Caller
from tuneserve.benchmarks.serving.load.apis.ours import OWN_CONNECTION
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

_ON_A_CONNECTION = 100


async def crowd(target: str, model: str, calls: int, seconds: float) -> Counter[str]:
    """Returns how many calls ended, by status."""
    request = pb.ClassifyRequest(model=model, inputs=[pb.ClassifyInput(text="the movie was long")])
    metadata = [("authorization", "Bearer " + os.environ.get("TUNESERVE_CROWD_KEY", ""))]
    ended, end = Counter[str](), time.monotonic() + seconds
    channels = [
        grpc.aio.insecure_channel(target, options=[OWN_CONNECTION]) for _ in range(-(-calls // _ON_A_CONNECTION))
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))

    async def repeat(channel: grpc.aio.Channel) -> None:
        classify = ClassificationServiceStub(channel).Classify
        while (left := end - time.monotonic()) > 0:
            try:
                await classify(request, metadata=metadata, timeout=left)
                ended["OK"] += 1
            except grpc.aio.AioRpcError as error:
                ended[error.code().name] += 1

    await asyncio.gather(*(repeat(channels[index // _ON_A_CONNECTION]) for index in range(calls)))
    for channel in channels:
        await channel.close()
    return ended


def measure(target: str, model: str, calls: int, seconds: float) -> dict[str, Any]:
    """Returns how long the caller waited, in milliseconds, and how the crowd's calls ended."""
    caller = Caller(target, model, seconds)
    time.sleep(1.0)
    ended = asyncio.run(crowd(target, model, calls, seconds - 2.0)) if calls else {}
    return caller.figures() | {"crowd": dict(ended)}


@click.command()
@click.argument("target", metavar="HOST:PORT")
@click.option("--model", required=True, help="A classifier that both keys may use.")
@click.option("--calls", type=click.IntRange(0), default=1000, show_default=True, help="Calls of the crowd in flight.")
@click.option("--seconds", type=click.FloatRange(5), default=12.0, show_default=True)
def main(target: str, model: str, calls: int, seconds: float) -> None:
    """Measure how long a caller waits while another tenant has very many calls in flight."""
    print(json.dumps(measure(target, model, calls, seconds)))


if __name__ == "__main__":
    main()
