"""A real Prometheus and a real Alertmanager, Debian's, on loopback."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from .debian import program
from .processes import free_port, running
from .test_alerts import OURS


@dataclass(frozen=True)
class Prometheus:
    address: str

    def finds(self, expression: str) -> bool:
        """Whether an expression has a series now."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{query}", timeout=60) as answer:
            return bool(json.load(answer)["data"]["result"])


@asynccontextmanager
async def prometheus(
    kept: Callable[..., Path],
    folder: Path,
    target: str,
    groups: list[dict[str, Any]],
    alertmanagers: tuple[str, ...] = (),
    others: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> AsyncIterator[Prometheus]:
    """Scrapes a server every second, with the labels that the ServiceMonitor gives, and other jobs by name: each an
    address and a path.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    static = {"targets": [target], "labels": {"namespace": OURS["namespace"], "pod": "p"}}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": OURS["job"], "static_configs": [static]},
            *(
                {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [address]}]}
                for name, (address, path) in others.items()
            ),
        ],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    async with running(
        program("prometheus", "prometheus", kept),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={address}",
    ):
        yield Prometheus(address)


@asynccontextmanager
async def alertmanager(kept: Callable[..., Path], folder: Path, webhook: str) -> AsyncIterator[str]:
    """Sends alerts to a webhook at once, and again when they are resolved; yields its address."""
    config = {
        "route": {"receiver": "webhook", "group_wait": "1s", "group_interval": "1s", "group_by": ["alertname"]},
        "receivers": [{"name": "webhook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
    }
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    async with running(
        *_alertmanager(kept),
        f"--config.file={folder / 'alertmanager.yaml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ):
        yield address


def _alertmanager(kept: Callable[..., Path]) -> list[str | Path]:
    """How it is started. Debian's looks for its templates below /usr/share: where it is not installed, the unpacked
    package's folder takes that place for it.
    """
    binary = program("prometheus-alertmanager", "prometheus-alertmanager", kept)
    if shutil.which(binary.name):
        return [binary]
    apart = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("apt-get install prometheus-alertmanager")
    return [*apart, "sh", "-c", 'mount --bind "$0" /usr/share && exec "$@"', binary.parents[1] / "share", binary]
