import json

from tuneserve.v1 import answer_pb2 as pb

from .conftest import Server, call


def test_an_answer_with_its_citations(server: Server, target: str) -> None:
    asked = ("--reader", "ann", "--filter", "lang=en", "--limit", "2")
    result = call(target, "answer", "--index", "docs", *asked, "Who pays?")
    assert result.exit_code == 0, result.stderr
    text, table = result.stdout.split("\n\n")
    assert text == "Tenants [bold]do. Not in cash."
    assert [line.rstrip().split(maxsplit=2) for line in table.splitlines()[1:]] == [
        ["faq", "3-20", "Tenants [bold]do."],
        ["faq", "21-33", "Not in cash."],
    ]
    assert server.request == pb.AnswerRequest(
        index="docs",
        messages=[pb.AnswerMessage(role="user", content="Who pays?")],
        readers=["ann"],
        filters=[pb.Filter(key="lang", values=["en"])],
        limit=2,
    )


def test_no_answer(target: str) -> None:
    result = call(target, "answer", "--index", "empty", stdin="Who pays?\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "The documents have no answer.\n")


def test_a_text_without_citations_is_said_to_be_one(target: str) -> None:
    result = call(target, "answer", "--index", "written", "Who pays?")
    assert (result.exit_code, result.stdout) == (0, "Tenants [bold]do. Not in cash.\n\n")
    assert result.stderr == "No citation: nothing shows that the documents say this.\n"


def test_the_whole_answer_as_json(target: str) -> None:
    answer = json.loads(call(target, "answer", "--index", "docs", "--json", "Who pays?").stdout)
    assert answer["text"] == "Tenants [bold]do. Not in cash."
    assert answer["retrieval"]["query"] == "Who pays?"
    assert answer["end"]["outcome"] == "ANSWER_OUTCOME_ANSWERED"
