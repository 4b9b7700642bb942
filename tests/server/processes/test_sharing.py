from pathlib import Path

import pytest

from tuneserve.machine import runtime
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.processes import sharing
from tuneserve.server.transport import connections


def test_limits_hold_in_sum():
    model = ModelConfig(path=Path("a"), max_queue=9, max_queue_tokens=3, gpu_memory_utilization=0.8, kv_cache_gib=2)
    config = ServerConfig(models={"a": model}, processes=4, max_connections=100, max_calls=10)
    own = sharing.settings(config)
    assert (own.max_connections, own.max_calls, own.processes) == (25, 2, 4)
    [mine] = own.models.values()
    assert (mine.max_queue, mine.max_queue_tokens) == (2, 1), "at least one"
    assert (mine.gpu_memory_utilization, mine.kv_cache_gib) == (0.2, 0.5)
    assert (own.listen, own.metrics_listen, own.health_listen) == (config.listen, "127.0.0.1:0", "127.0.0.1:0")
    assert mine.max_num_seqs == model.max_num_seqs


def test_what_the_engine_or_the_machine_chooses_is_still_theirs():
    own = sharing.settings(ServerConfig(models={"a": ModelConfig(path=Path("a"))}, processes=2))
    assert own.models["a"].kv_cache_gib is None


def test_the_calls_of_all_connections_of_all_processes_fit_into_the_memory(monkeypatch):
    monkeypatch.setattr(connections.hardware, "memory", lambda: 3 << 30)
    assert sharing.settings(ServerConfig(processes=2)).max_connections == 204 // 2


@pytest.mark.parametrize(
    ("available", "count", "each"),
    [
        ({0, 1, 2, 3}, 2, [[0, 1], [2, 3]]),
        ({4, 6, 8}, 2, [[4], [6, 8]]),
        ({5}, 2, [[5], [5]]),
    ],
)
def test_each_has_cores_of_its_own_if_there_are_enough(available, count, each):
    assert sharing.cores(available, count) == each


@pytest.mark.parametrize(("limit", "threads"), [(0, "8"), (4, "2"), (1, "1")])
def test_a_containers_limit_is_shared(monkeypatch, limit, threads):
    monkeypatch.setattr(runtime, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(runtime, "cpu_limit", lambda: limit)
    assert sharing.environment({"A": "b"}, 8, 2) == {"A": "b", "OMP_NUM_THREADS": threads}
    assert sharing.environment({"OMP_NUM_THREADS": "3"}, 8, 2) == {"OMP_NUM_THREADS": "3"}, "as for any engine"


def test_the_gpus_multiprocessors_are_shared(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(runtime, "has_nvidia_gpu", lambda: True)
    given = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert sharing.environment(given, 8, 3) == {**given, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "34"}
    assert not caplog.records
    sharing.environment({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "none")}, 8, 3)
    assert "no MPS on the GPU" in caplog.text
