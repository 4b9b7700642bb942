"""The calls to a monitor of the server's settings."""

from collections.abc import AsyncIterable, Iterable
from typing import Literal

from tuneserve.client import answers, results
from tuneserve.client.call import Call, Requests
from tuneserve.v1 import monitor_pb2
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub


def observe(
    monitor: str,
    texts: Iterable[str] | AsyncIterable[str],
    *,
    truncation: Literal["reject", "end"] = "reject",
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[results.StreamedObservation]:
    """Finds and counts the topic and the sentiment of each text, on one stream.

        for answer in client.observe("news", lines, truncation="end"):
            print(answer.id, answer.result.topics, answer.result.sentiment.label)

    Texts, answers and `timeout` are as in `classify_stream`: a text that fails has an `error` in its answer, and is not
    counted. `truncation`: what happens to texts that are too long for one of the monitor's models. `priority`: lower
    goes first. Iterating raises CallError; after the first answer there are no retries.
    """
    how = f"TRUNCATION_{truncation.upper()}"

    def request(place: int, text: str) -> monitor_pb2.ObserveStreamRequest:
        return monitor_pb2.ObserveStreamRequest(id=place, monitor=monitor, text=text, truncation=how, priority=priority)

    sent = Requests(texts, request)
    return Call(MonitorServiceStub, "ObserveStream", sent, answers.observed, timeout, is_endless=True)


def examples(monitor: str, topic: str, sentiment: str, *, timeout: float | None = None) -> Call[list[results.Example]]:
    """Returns the last texts of one topic and one sentiment that the caller's own tenant sent, the newest first.

    Raises CallError, WrongState if the monitor keeps none.
    """
    request = monitor_pb2.ExamplesRequest(monitor=monitor, topic=topic, sentiment=sentiment)
    return Call(MonitorServiceStub, "Examples", request, answers.examples, timeout)
