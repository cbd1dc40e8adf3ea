"""The gateway's figures of one version, from a real haproxy's metrics."""

from pathlib import Path

import httpx

from tests.serving.gateway.upstreams import upstreams
from tests.waiting import until
from weighbridge.core.processes import free_port
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.metrics import figures
from weighbridge.serving.gateway.models import Front, Route
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.traffic_figures import since


def test_requests_of_one_version_are_counted_by_their_kind(tmp_path: Path) -> None:
    gateway, port = Gateway(tmp_path), free_port()
    try:
        with upstreams("7", "8") as engines:
            gateway.ensure()
            routes = tuple(Route(name=engine.name, port=engine.port) for engine in engines)
            gateway.apply(Front(target="demo", port=port, routes=routes))
            until(lambda: all(server.up for server in gateway.servers("demo")))
            before = figures(gateway.metrics_port, "demo", "7")
            with httpx.Client(trust_env=False, headers={"X-Weighbridge-Version": "7"}) as client:
                statuses = [
                    client.get(f"http://127.0.0.1:{port}{path}").status_code
                    for path in ("/v1/models", "/v1/models", "/health")
                ]
            now = figures(gateway.metrics_port, "demo", "7")
            grown = since(before, now)
            assert grown["requests"] == len(statuses)
            assert grown["errors"] == sum(status >= 500 for status in statuses) / 3
            assert {"seconds_average", "queue_seconds_average", "in_flight"} <= grown.keys()
            assert since(now, figures(gateway.metrics_port, "demo", "8"))["requests"] == 0
            assert figures(gateway.metrics_port, "demo", "9") == {}
            metrics = gateway.metrics_port
    finally:
        Supervisor(tmp_path).shutdown()
    assert figures(metrics, "demo", "7") == {}
