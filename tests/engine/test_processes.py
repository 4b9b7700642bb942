"""Two processes, each with an engine: while one is started again and loads its model, the other answers all calls."""

import time

import grpc
import psutil
import pytest

from tuneserve import samples
from tuneserve.serving import launched
from tuneserve.v1.embedding_pb2 import EmbedRequest
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub

pytestmark = pytest.mark.engine

TEXT = EmbedRequest(model="vectors", texts=["the film was good"])


def answerer(address: str) -> str:
    """Makes a call on a connection of its own. Returns what the ids of the process's requests begin with."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer, call = EmbeddingServiceStub(channel).Embed.with_call(TEXT, timeout=60)
        assert answer.results
        return dict(call.trailing_metadata())["x-request-id"][:8]


def test_no_call_is_sent_to_a_process_that_loads():
    with launched("--model", f"vectors={samples.embedding_model()}", "--processes", "2") as server:
        address = server.addresses.grpc
        before = {answerer(address) for _ in range(40)}
        assert len(before) == 2
        lost, _ = psutil.Process(server.process.pid).children()
        lost.kill()
        psutil.wait_procs([lost], 60)
        [other], deadline = {answerer(address) for _ in range(20)}, time.monotonic() + 300
        while (found := answerer(address)) == other:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert found not in before
