"""tuneserve call admin, and models."""

import json

from tuneserve.v1 import (
    model_admin_pb2,
)

from .conftest import Server, call, cells


def test_models(target: str) -> None:
    assert [" ".join(row) for row in cells(call(target, "models"))] == [
        "chat ba9876543210 sentiment shadow, split 12.5% generation loading not quantized - -",
        "sentiment 0123456789ab sentiment, split 87.5% sequence-classification ready w8a8 polite, terse neg, pos",
    ]
    assert call(target, "admin", "models").stdout == call(target, "models").stdout
    listed = json.loads(call(target, "models", "--json").stdout)
    assert listed["models"][1]["labels"] == ["neg", "pos"]
    assert [alias["name"] for alias in listed["aliases"]] == ["sentiment", "split"]


def test_admin_load(server: Server, target: str) -> None:
    settings = ("--set", "max_length=512", "--set", "engine={enable_prefix_caching: true}", "--set", "dtype=auto")
    result = call(target, "admin", "load", "vectors", "new/vectors", *settings, "--set", "redact=[email]")
    assert cells(result) == [["vectors", "77", "-", "embedding", "ready", "not", "quantized", "-", "-"]]
    assert result.stderr == "vectors@77: waiting\n"
    assert (server.request.model, server.request.path) == ("vectors", "new/vectors")
    assert server.request.settings == model_admin_pb2.ModelSettings(
        max_length=512, dtype="auto", engine={"enable_prefix_caching": True}, redact={"kinds": ["email"]}
    )
    begun = call(target, "admin", "load", "vectors", "new/vectors", "--no-wait")
    assert cells(begun)[0][4] == "loading"
    assert not server.request.HasField("settings")
    assert call(target, "admin", "load", "vectors", "x", "--set", "max_length").exit_code == 2
    assert call(target, "admin", "load", "vectors", "x", "--set", "engine={").exit_code == 2
    twice = ("--set", "max_queue=1", "--set", "max_queue=2")
    assert "given twice" in call(target, "admin", "load", "v", "x", *twice).stderr
    for wrong in ("path=/x", "adapters={}", "max_queue=many", "engine={scheduler_cls: x}", "redact=email"):
        result = call(target, "admin", "load", "v", "x", "--set", wrong)
        assert (result.exit_code, f"--set {wrong.partition('=')[0]}" in result.stderr) == (2, True)
    failed = call(target, "admin", "load", "broken", "x")
    assert (failed.exit_code, failed.stderr.splitlines()[-1]) == (1, "error: broken@77: its engine did not start")
    assert call(target, "admin", "cancel-load", "broken@77").stdout == "broken@77 is gone\n"
    assert server.request.model == "broken@77"


def test_admin_unload_and_adapters(server: Server, target: str) -> None:
    assert call(target, "admin", "unload", "chat@77").stdout == "chat@77 is gone\n"
    assert server.request.model == "chat@77"
    assert call(target, "admin", "unload", "chat").exit_code == 2
    assert call(target, "admin", "load-adapter", "chat", "polite", "a/b").stdout == "polite is loaded, version 88\n"
    assert (server.request.model, server.request.adapter, server.request.path) == ("chat", "polite", "a/b")
    assert call(target, "admin", "unload-adapter", "chat", "polite").stdout == "polite is gone\n"
    assert (server.request.model, server.request.adapter) == ("chat", "polite")


def test_admin_alias(server: Server, target: str) -> None:
    def alias(*arguments: str) -> tuple[str, model_admin_pb2.SetAliasRequest]:
        result = call(target, "admin", "alias", *arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout, server.request

    printed, request = alias("prod", "chat@1=90", "chat@2=10", "--shadow", "chat@3", "--unload-unused")
    assert printed == "prod -> chat@1 90%, chat@2 10%, shadow chat@3\n"
    assert [(one.model, one.weight) for one in request.alias.targets] == [("chat@1", 90), ("chat@2", 10)]
    assert (request.alias.shadow, request.alias.etag, request.unload_unused) == ("chat@3", "", True)
    printed, request = alias("prod", "chat@2")
    assert (printed, request.alias.targets[0].weight) == ("prod -> chat@2\n", 1)
    assert not request.alias.shadow
    assert alias("prod", "chat@2", "--etag", "abc")[1].alias.etag == "abc"
    printed, request = alias("prod", "--remove", "--etag", "abc")
    assert (printed, request.name, request.etag) == ("prod is removed\n", "prod", "abc")
    wrongs = ([], ["chat"], ["chat@1=0"], ["chat@1=x"], ["chat@1", "--remove"], ["chat@1", "--shadow", "chat@2=5"])
    for wrong in wrongs:
        assert call(target, "admin", "alias", "prod", *wrong).exit_code == 2
