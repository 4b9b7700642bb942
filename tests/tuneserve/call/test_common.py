"""What the commands share: texts from standard input, and tables."""

from .conftest import Server, call, cells


def test_texts_come_from_standard_input(server: Server, target: str) -> None:
    long = "x " * 200
    result = call(target, "classify", "--model", "sentiment", "--top-k", "1", stdin=f"one\n\n{long}\n")
    assert [row[0] for row in cells(result)] == ["one", "x"]
    assert [entry.text for entry in server.request.inputs] == ["one", long.strip()]
    call(target, "chat", "--model", "chat", stdin="two\nlines\n")
    assert server.request.prompt.chat.messages[0].content == "two\nlines"


def test_empty_standard_input_is_a_usage_error(target: str) -> None:
    result = call(target, "classify", "--model", "sentiment", stdin=" \n")
    assert result.exit_code == 2
    assert "no TEXT given, and standard input is empty" in result.stderr
