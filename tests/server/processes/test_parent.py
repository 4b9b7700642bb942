"""A server of several processes from outside: one port, one page of metrics, one health, one exit status."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.server.call.tenants import hashed
from tuneserve.v1 import model_admin_pb2, model_pb2
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
SERVICE = "tuneserve.v1.ModelService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def answerer(address: str) -> str:
    """Makes a call on a connection of its own. Returns what the ids of the process's requests begin with."""
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        _, call = ModelServiceStub(channel).ListModels.with_call(model_pb2.ListModelsRequest(), timeout=20)
        return dict(call.trailing_metadata())["x-request-id"][:8]


def health(address: str, service: str = SERVICE) -> int:
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def wait(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_all_processes_answer_and_their_counts_are_one(two, metric):
    count = metric(two, "grpc_server_started_total", grpc_method="ListModels")
    assert len({answerer(two.addresses.grpc) for _ in range(40)}) == 2
    assert metric(two, "grpc_server_started_total", grpc_method="ListModels") == count + 40
    assert metric(two, "tuneserve_process_up") == 2


def test_each_has_its_own_cores(two, children):
    first, second = (set(one.cpu_affinity()) for one in children(two))
    assert not first & second or len(first | second) == 1


def test_health_answers_for_all(two):
    assert health(two.addresses.health) == health(two.addresses.grpc) == SERVING
    assert health(two.addresses.health, "") == NOT_SERVING, "there are no models"
    with pytest.raises(grpc.RpcError) as caught:
        health(two.addresses.health, "models/none")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_quota_is_one_for_all_processes(serve, tmp_path):
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(f"tenants: {{a: {{keys: ['{hashed('key')}'], requests_per_second: 0.01}}}}")
    with serve(tenants=str(tenants)) as server:
        ends = [end(server.addresses.grpc, (("x-api-key", "key"),)) for _ in range(20)]
    assert Counter(ends) == {grpc.StatusCode.OK: 1, grpc.StatusCode.RESOURCE_EXHAUSTED: 19}


def end(address: str, metadata: tuple[tuple[str, str], ...]) -> grpc.StatusCode:
    """Makes a call on a connection of its own. Returns its status."""
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        call = ModelServiceStub(channel).ListModels.future(model_pb2.ListModelsRequest(), metadata=metadata, timeout=20)
        return call.code()


@pytest.mark.parametrize("key", ["listen", "admin_listen", "metrics_listen", "health_listen"])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_ports_are_shared_with_no_other_server(two, tmp_path, key, processes):
    ports = dict.fromkeys(("listen", "admin_listen", "metrics_listen", "health_listen"), "127.0.0.1:0")
    names = {"listen": "grpc"} | {name: name.removesuffix("_listen") for name in ports if name != "listen"}
    ports[key] = getattr(two.addresses, names[key])
    ended = run(tmp_path, ports | {"processes": processes})
    assert ended.returncode == 2
    assert f"error: {key}: can't bind {ports[key]}" in ended.stderr


def test_a_server_that_can_not_start_ends(tmp_path):
    (tmp_path / "empty").mkdir()
    ports = dict.fromkeys(("listen", "metrics_listen"), "127.0.0.1:0")
    ended = run(tmp_path, ports | {"processes": 2, "models": {"a": {"path": "empty"}}})
    assert ended.returncode == 2
    assert "error: " in ended.stderr


def run(folder: Path, settings: object) -> subprocess.CompletedProcess[str]:
    (folder / "server.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-P", "-m", "tuneserve.cli", "serve", "--config", str(folder / "server.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_process_is_started_again_and_the_others_go_on(serve, children, metric, number):
    with serve(watchdog_seconds=1) as server:
        answerers = {answerer(server.addresses.grpc) for _ in range(40)}
        count = metric(server, "grpc_server_started_total")
        lost, other = children(server)
        lost.send_signal(number)
        wait(lambda: not lost.is_running())
        counts = [count]
        while metric(server, "tuneserve_process_up") < 2:
            answerer(server.addresses.grpc)
            counts.append(metric(server, "grpc_server_started_total"))
        assert counts == sorted(counts)
        assert metric(server, "grpc_server_started_total") == count + len(counts) - 1
        wait(lambda: answerer(server.addresses.grpc) not in answerers)
        assert metric(server, "tuneserve_process_restarts_total") == 1
        assert other in children(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_process_that_is_started_again_has_what_was_changed(serve, children, metric, fakes, make_bert, tmp_path):
    models = {"m": {"path": str(make_bert())}}
    make_bert(labels=["x", "y"]).rename(tmp_path / "new")
    with serve(models=models, models_root=str(tmp_path)) as server:
        new = administer(server, "LoadModel", model="m", path="new").model.id
        wait(lambda: serves(server, new))
        alias = model_pb2.Alias(name="m", targets=[model_pb2.AliasTarget(model=new, weight=1)])
        administer(server, "SetAlias", alias=alias, unload_unused=True)
        lost = children(server)[0]
        lost.kill()
        wait(lambda: lost not in children(server) and len(children(server)) == 2)
        with pytest.raises(grpc.RpcError) as caught:
            administer(server, "DeleteAlias", name="m")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "while one of the server's processes starts" in caught.value.details()
        wait(lambda: metric(server, "tuneserve_process_up") == 2)
        for _ in range(20):
            assert [one.id for one in listed(server)] == [new]
        administer(server, "DeleteAlias", name="m")


def administer(server, method: str, **fields):
    with grpc.insecure_channel(server.addresses.admin, OWN_CONNECTION) as channel:
        request = getattr(model_admin_pb2, f"{method}Request")(**fields)
        return getattr(ModelAdminServiceStub(channel), method)(request, timeout=60)


def listed(server) -> list[model_pb2.Model]:
    with grpc.insecure_channel(server.addresses.grpc, OWN_CONNECTION) as channel:
        return list(ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=60).models)


def serves(server, id_: str) -> bool:
    return any(one.id == id_ and one.state == model_pb2.MODEL_STATE_READY for one in listed(server))


def test_sigterm_while_a_process_is_started_again(serve, children):
    """It may not even listen to signals yet."""
    with serve() as server:
        lost, other = children(server)
        lost.kill()
        wait(lambda: set(children(server)) - {lost, other})
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_process_is_not_started_again_where_a_failure_ends_the_server(serve, children):
    with serve(on_engine_failure="exit") as server:
        children(server)[0].kill()
        assert server.process.wait(60) == 1


def test_the_probes_port_says_no_first(serve):
    with serve(linger_seconds=600) as server:
        server.process.send_signal(signal.SIGTERM)
        wait(lambda: health(server.addresses.health) == NOT_SERVING)
        answerer(server.addresses.grpc)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
