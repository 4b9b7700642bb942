"""`make observe`: a server whose engine dies, a real Prometheus and Alertmanager, and a webhook that is told, twice.

The rules are the chart's; only how long a state has to last is shortened, which promtool has checked.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import helm_python
import pytest

from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.engine.interface import EngineFailed

from ..server.conftest import served_by
from ..server.troubled_engine import TroubledEngine
from .monitoring import alertmanager, prometheus
from .test_alerts import OURS, rules
from .test_prometheus import CLASSIFY, ClassificationServiceStub

ALERT = "TuneserveEngineDown"


class Webhook:
    """Keeps what it is told of an alert."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                told.extend(alert for alert in message["alerts"] if alert["labels"]["alertname"] == ALERT)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def heard(self, status: str) -> list[dict[str, Any]]:
        return [alert for alert in self.told if alert["status"] == status]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    thread = Thread(target=webhook.server.serve_forever)
    thread.start()
    yield webhook
    webhook.server.shutdown()
    thread.join()
    webhook.server.server_close()


async def test_an_alert_reaches_a_webhook_and_resolves(
    chart: helm_python.Chart,
    make_bert: Callable[..., Path],
    kept: Callable[..., Path],
    tmp_path: Path,
    webhook: Webhook,
) -> None:
    groups = rules(chart, {})
    for rule in (rule for group in groups for rule in group["rules"] if "for" in rule):
        rule["for"] = "2s"
    engines: list[TroubledEngine] = []

    def made(name: str, engine: TroubledEngine) -> None:
        # One that takes the place of a dead one waits until it may start.
        engine.starts = not engines
        engines.append(engine)

    models = {"sentiment": ModelConfig(path=make_bert("ForSequenceClassification", ["neg", "pos"]))}
    config = ServerConfig(models=models, **dict.fromkeys(("listen", "metrics_listen", "admin_listen"), "127.0.0.1:0"))
    async with (
        served_by(config, made) as server,
        alertmanager(tmp_path, webhook.address) as alerts,
        prometheus(kept, tmp_path, server.app.metrics_address, groups, (alerts,)) as running,
    ):
        classify = ClassificationServiceStub(server.channel).Classify
        await classify(CLASSIFY)
        await until(lambda: running.finds("tuneserve_engine_up == 1"))
        assert not webhook.told
        engines[0].broken = EngineFailed("died")
        await classify(CLASSIFY).code()
        fired = await until(lambda: webhook.heard("firing"))
        print("\ntold of", fired[0]["annotations"]["summary"])
        assert fired[0]["labels"].items() >= {"model": "sentiment", "pod": "p", "severity": "critical", **OURS}.items()
        assert fired[0]["annotations"]["summary"].endswith("is down in p.")
        for engine in engines:
            engine.starts = True
        resolved = await until(lambda: webhook.heard("resolved"))
        print("resolved")
        assert resolved[0]["fingerprint"] == fired[0]["fingerprint"]


async def until(found: Callable[[], Any]) -> Any:
    """Waits for what there is, two minutes at most."""
    async with asyncio.timeout(120):
        while True:
            # Prometheus may not have started yet.
            with contextlib.suppress(OSError):
                if it := await asyncio.to_thread(found):
                    return it
            await asyncio.sleep(0.1)
