"""`make observe`: a server whose engine is killed under load, and a stream of texts that turns negative; a real
Prometheus and Alertmanager, and a webhook that is told of each, and again when it is over.

The rules are the chart's, with shorter times: as they are, promtool has checked them.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import helm_python
import psutil
import pytest

from tuneserve import samples
from tuneserve.serving import Server, launched
from tuneserve.v1.monitor_pb2 import ObserveStreamRequest
from tuneserve.v1.monitor_pb2_grpc import MonitorServiceStub

from .monitoring import alertmanager, prometheus
from .processes import running
from .test_alerts import OURS, rules

ENGINE_DOWN, SURGES = "TuneserveEngineDown", "TuneserveNegativeSurges"
ANSWERED = 'rate(grpc_server_handled_total{grpc_method="Embed", grpc_code="OK"}[5s]) > 1'


class Webhook:
    """Keeps what it is told of alerts."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                told.extend(message["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def heard(self, name: str, status: str) -> list[dict[str, Any]]:
        return [one for one in self.told if one["labels"]["alertname"] == name and one["status"] == status]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    thread = Thread(target=webhook.server.serve_forever)
    thread.start()
    yield webhook
    webhook.server.shutdown()
    thread.join()
    webhook.server.server_close()


def hasty(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rules, by which states last 2 s, five minutes 10 s and a day 2 minutes."""
    for rule in (rule for group in groups for rule in group["rules"]):
        rule["expr"] = rule["expr"].replace("[5m]", "[10s]").replace("[1d]", "[2m]")
        if "for" in rule:
            rule["for"] = "2s"
    return groups


def kill_engine(server: Server) -> None:
    """If there is one."""
    for one in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "EngineCore" in str(one.cmdline()):
                one.kill()


@pytest.mark.engine
async def test_an_engine_that_is_killed_reaches_a_webhook_and_resolves(
    chart: helm_python.Chart, kept: Callable[..., Path], tmp_path: Path, webhook: Webhook
) -> None:
    with launched("--model", f"vectors={samples.embedding_model()}") as server:
        bench = [sys.executable, "-P", "-m", "tuneserve.cli", "bench", "--model", "vectors", "--rate", "10"]
        async with (
            running(*bench, "--target", server.addresses.grpc, "--seconds", "600"),
            alertmanager(kept, tmp_path, webhook.address) as alerts,
            prometheus(kept, tmp_path, server.addresses.metrics, hasty(rules(chart, {})), (alerts,)) as found,
        ):
            await until(lambda: found.finds(ANSWERED))
            assert not webhook.heard(ENGINE_DOWN, "firing")
            # The next engine would take its place too soon for an alert.
            fired = await until(lambda: kill_engine(server) or webhook.heard(ENGINE_DOWN, "firing"))
            print("\ntold of", fired[0]["annotations"]["summary"])
            expected = {"model": "vectors", "pod": "p", "severity": "critical", **OURS}
            assert fired[0]["labels"].items() >= expected.items()
            assert fired[0]["annotations"]["summary"].endswith("is down in p.")
            resolved = await until(lambda: webhook.heard(ENGINE_DOWN, "resolved"))
            print("resolved")
            assert resolved[0]["fingerprint"] == fired[0]["fingerprint"]
            await until(lambda: found.finds(ANSWERED))


class Texts:
    """An endless stream of texts about one topic, fifty a second, of which a share is negative, as the fake engines'
    models have it.
    """

    def __init__(self) -> None:
        self.share = 0.15

    async def __aiter__(self) -> AsyncIterator[ObserveStreamRequest]:
        negative = 0.0
        while True:
            negative += self.share
            text = "the film was good" if negative >= 1 else "good"
            negative %= 1
            yield ObserveStreamRequest(monitor="films", text=text)
            await asyncio.sleep(0.02)


async def test_a_surge_of_negative_texts_reaches_a_webhook_and_resolves(
    chart: helm_python.Chart,
    make_bert: Callable[..., Path],
    fakes: None,
    kept: Callable[..., Path],
    tmp_path: Path,
    webhook: Webhook,
) -> None:
    labels = {"topics": ["arts", "sports", "trade"], "sentiment": ["neg", "pos"]}
    models = {name: {"path": str(make_bert(labels=of_model))} for name, of_model in labels.items()}
    monitors = {"films": {"topic": "topics", "sentiment": "sentiment"}}
    file = tmp_path / "server.yaml"
    file.write_text(json.dumps({"models": models, "monitors": monitors}))
    texts = Texts()
    with launched("--config", str(file)) as server:
        async with (
            grpc.aio.insecure_channel(server.addresses.grpc) as channel,
            alertmanager(kept, tmp_path, webhook.address) as alerts,
            prometheus(kept, tmp_path, server.addresses.metrics, hasty(rules(chart, {})), (alerts,)) as found,
        ):
            call = MonitorServiceStub(channel).ObserveStream(aiter(texts))
            await until(lambda: found.finds("sum(tuneserve_observed_total) > 1000"))
            assert not webhook.heard(SURGES, "firing")
            texts.share = 0.6
            fired = await until(lambda: webhook.heard(SURGES, "firing"))
            print("\ntold of", fired[0]["annotations"]["summary"])
            assert fired[0]["labels"].items() >= {"monitor": "films", "topic": "arts", **OURS}.items()
            texts.share = 0.15
            resolved = await until(lambda: webhook.heard(SURGES, "resolved"))
            print("resolved")
            assert resolved[0]["fingerprint"] == fired[0]["fingerprint"]
            call.cancel()


async def until(found: Callable[[], Any]) -> Any:
    """Waits for what there is, two minutes at most."""
    async with asyncio.timeout(120):
        while True:
            # Prometheus may not have started yet.
            with contextlib.suppress(OSError):
                if it := await asyncio.to_thread(found):
                    return it
            await asyncio.sleep(0.1)
