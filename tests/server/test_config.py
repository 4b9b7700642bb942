from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.server import config
from tuneserve.server.config import ModelConfig, ServerConfig


@pytest.fixture
def load(tmp_path):
    """Writes a server.yaml beside a directory `m`, and loads it."""
    (tmp_path / "m").mkdir()

    def run(text: str) -> ServerConfig:
        (tmp_path / "server.yaml").write_text(text)
        return config.load(tmp_path / "server.yaml")

    return run


def test_a_whole_file(load, tmp_path):
    loaded = load(
        "listen: 0.0.0.0:1\nmetrics_listen: '[::1]:2'\ndrain_seconds: 5\nmodels: {a: {path: m, max_queue: 7}}"
    )
    assert loaded.listen == "0.0.0.0:1"
    assert loaded.drain_seconds == 5.0
    assert loaded.models["a"].path == tmp_path / "m", "relative to the file"
    assert loaded.models["a"].max_queue == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a mapping"),
        ("listen: [", "not YAML"),
        ("models: {a: {path: m}, a: {path: m}}", "not YAML: 'a' is a duplicate key in .* line 1"),
        ("models: {a: {path: m,\nmax_queue: 1,\nmax_queue: 2}}", "'max_queue' is a duplicate key in .* line 3"),
        ("drain_seconds: 2024-13-45", "not YAML: a value can't be read: month must be in 1..12"),
        ("models: {}", "models: none given"),
        ("models: {a: {path: m, engine: {nnodes: 2}}}", "on_engine_failure: needs to be exit.* models.a.engine.nnodes"),
        ("modles: {}\n", "unknown key 'modles'"),
        ("models: {a: {path: m, max_quue: 1}}", "models.a: unknown key 'max_quue'"),
        ("models: {a: {}}", "models.a: path is missing"),
        ("models: {a: {path: nope}}", "models.a.path: .*nope is not a directory"),
        ("models: {a: {path: m}}\ntenants: nope.yaml", "tenants: .*nope.yaml: no such file"),
        ("models: {a: {path: m}}\ntls: {certificate: c.pem, key: k.pem}", "tls.certificate: .*c.pem: no such file"),
        ("models: {a: {path: m, max_queue: many}}", "models.a.max_queue: expected a whole number, found 'many'"),
        ("models: {a: {path: m, max_queue: true}}", "models.a.max_queue: expected a whole number"),
        ("models: {a: {path: m, max_queue: 0}}", "models.a.max_queue: 0 is not allowed"),
        ("models: {a: {path: m, dtype: int3}}", "models.a.dtype: 'int3' is not allowed"),
        ("models: {a: {path: m, gpu_memory_utilization: 2}}", "models.a.gpu_memory_utilization: 2 is not allowed"),
        ("models: {'../a': {path: m}}", "a name is 1 to 63 letters"),
        ("listen: nowhere\nmodels: {a: {path: m}}", "listen: 'nowhere' is not HOST:PORT"),
        ("listen: a:70000\nmodels: {a: {path: m}}", "listen: 'a:70000' is not HOST:PORT"),
        ("drain_seconds: .inf\nmodels: {a: {path: m}}", "drain_seconds: inf is not allowed"),
        ("models: {a: {path: m, adapters: {b: m}}}", "models.a.max_adapters: 0 is not allowed"),
        ("models: {a: {path: m}}\nreload_models: true\nprocesses: 2", "reload_models: can't be true with several"),
        ("models: {a: {path: m}}\nmonitors: {x: {topic: a}}", "monitors.x: sentiment is missing"),
        (
            "models: {a: {path: m}}\nmonitors: {x: {topic: a, sentiment: b}}",
            "monitors.x.sentiment: b is not a model or alias of this file",
        ),
        ("models: {a: {path: m}}\nfeedback: {redact: [ip]}", "feedback: path is missing"),
        ("models: {a: {path: m}}\nfeedback: {path: f, max_rows: 0}", "feedback.max_rows: 0 is not allowed"),
        (
            "models: {a: {path: m}}\nmonitors: {x: {topic: a, sentiment: a, examples: 101}}",
            "monitors.x.examples: 101 is not allowed",
        ),
        (
            "models: {a: {path: m}}\nindexes: {d: {path: d, embedding: b}}",
            "indexes.d.embedding: b is not a model of this file",
        ),
        (
            "models: {a: {path: m}}\nindexes: {d: {path: d, embedding: a, ranking: b}}",
            "indexes.d.ranking: b is not a model of this file",
        ),
        (
            "models: {a: {path: m}}\nindexes: {d: {path: d, embedding: a, keyword_weight: 2}}",
            "indexes.d.keyword_weight: 2 is not allowed",
        ),
        ("drain_seconds: -1\nmodels: {a: {path: m}}", "drain_seconds: -1 is not allowed"),
    ],
)
def test_bad_files_name_the_key(load, text, message):
    with pytest.raises(UserError, match=message):
        load(text)


def test_a_misspelt_key_gets_a_suggestion(load):
    with pytest.raises(UserError) as caught:
        load("models: {a: {path: m, max_lenght: 5}}")
    assert caught.value.hint == "did you mean max_length?"


def test_an_unknown_model_gets_those_that_are_known(load):
    with pytest.raises(UserError) as caught:
        load("models: {a: {path: m}}\naliases: {b: {targets: {a: 1}}}\nmonitors: {x: {topic: c, sentiment: a}}")
    assert caught.value.hint == "allowed: a, b"


def test_flags():
    assert config.parse_models(["a=x", "b=y=z"]) == {
        "a": ModelConfig(path=Path("x")),
        "b": ModelConfig(path=Path("y=z")),
    }
    for bad in ("a", "a="):
        with pytest.raises(UserError, match="expected NAME=PATH"):
            config.parse_models([bad])
    with pytest.raises(UserError, match="given twice"):
        config.parse_models(["a=x", "a=y"])
