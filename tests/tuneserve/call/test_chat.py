"""tuneserve call chat."""

from google.protobuf import json_format

from .conftest import Server, call


def test_chat(server: Server, target: str) -> None:
    result = call(target, "chat", "--model", "chat", "--system", "Be brief.", "--temperature", "0", "Why?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "The sky is [bold] blue.\n", "")
    messages = [(message.role, message.content) for message in server.request.prompt.chat.messages]
    assert messages == [("system", "Be brief."), ("user", "Why?")]
    assert server.request.sampling.temperature == 0
    assert server.request.sampling.HasField("temperature")


def test_chat_with_tools(server: Server, target: str, tmp_path) -> None:
    (tmp_path / "weather.json").write_text('{"name": "weather", "parameters": {"type": "object"}}')
    tools = ("--tool", str(tmp_path / "weather.json"), "--tool", '{"type": "function", "function": {"name": "time"}}')
    result = call(target, "chat", "--model", "thinks", *tools, "Rain?")
    assert result.stdout == 'I look.\nweather({"city": "Lisbon"})\ntime({})\n'
    assert result.stderr == "It may rain.\n"
    sent = [json_format.MessageToDict(tool) for tool in server.request.prompt.chat.tools]
    assert [(tool["type"], tool["function"]["name"]) for tool in sent] == [
        ("function", name) for name in ("weather", "time")
    ]
    for wrong in ("{", "[1]", str(tmp_path / "none.json")):
        result = call(target, "chat", "--model", "thinks", "--tool", wrong, "Rain?")
        assert (result.exit_code, "--tool" in result.stderr) == (2, True)
