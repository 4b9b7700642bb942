"""The shell client over a real wire, against a server that answers without a model."""

import json

from tuneserve.v1 import (
    classification_pb2,
    common_pb2,
)

from .conftest import Server, call, cells


def test_classify(server: Server, target: str) -> None:
    result = call(target, "classify", "--model", "sentiment", "A quiet film.", "Bad [bold]film[/bold].")
    assert cells(result) == [
        ["A", "quiet", "film.", "pos", "0.7500"],
        ["[red]neg", "0.2500"],
        ["Bad", "[bold]film[/bold].", "pos", "0.7500"],
        ["[red]neg", "0.2500"],
    ]
    assert [entry.text for entry in server.request.inputs] == ["A quiet film.", "Bad [bold]film[/bold]."]
    assert not server.request.HasField("top_k")
    assert not server.request.inputs[0].HasField("text_pair")
    assert server.request.truncation == common_pb2.TRUNCATION_REJECT


def test_classify_options(server: Server, target: str) -> None:
    result = call(target, "classify", "--model", "nli", "A", "--pair", "B", "--top-k", "1", "--truncate")
    assert cells(result) == [["A", "(truncated)", "pos", "0.7500"]]
    assert server.request.inputs[0].text_pair == "B"
    assert server.request.top_k == 1


def test_classify_by_labels_of_the_callers_own(server: Server, target: str) -> None:
    examples = ("--example", "praise=Lovely!", "--example", "complaint=2 + 2 = 5?")
    options = ("--labels", "praise, complaint", *examples, "--instruction", "What is it?")
    assert call(target, "classify", "--model", "chat", *options, "It broke.").exit_code == 0
    assert list(server.request.labels) == ["praise", "complaint"]
    assert [(example.label, example.text) for example in server.request.examples] == [
        ("praise", "Lovely!"),
        ("complaint", "2 + 2 = 5?"),
    ]
    assert server.request.instruction == "What is it?"
    assert not server.request.HasField("explain")
    for wrong in ("praise", "=Lovely!", "praise="):
        result = call(target, "classify", "--model", "chat", "--labels", "a,b", "--example", wrong, "x")
        assert (result.exit_code, f"--example {wrong}: expected LABEL=TEXT" in result.stderr) == (2, True)


def test_classify_explains(server: Server, target: str) -> None:
    result = call(target, "classify", "--model", "sentiment", "--top-k", "1", "--explain", "A [bold]film")
    assert server.request.HasField("explain")
    labels, weights = result.stdout.split("\n\n")
    assert "pos" in labels
    assert [line.split() for line in weights.splitlines()[1:]] == [
        ["A", "[bold]film", "A", "-0.1250"],
        ["[bold]film", "+0.5000"],
    ]


def test_rank(server: Server, target: str) -> None:
    options = ("--model", "nli", "--top-k", "2", "--label", "pos", "--truncate")
    result = call(target, "rank", *options, "why", "one", "two [x]", "three")
    assert cells(result) == [["0.5000", "three"], ["0.2500", "two", "[x]"]]
    assert (server.request.query, list(server.request.candidates)) == ("why", ["one", "two [x]", "three"])
    assert (server.request.top_k, server.request.label) == (2, "pos")
    assert server.request.truncation == common_pb2.TRUNCATION_END
    assert len(cells(call(target, "rank", "--model", "nli", "why", stdin="a\n\nb\n"))) == 2
    assert not server.request.HasField("label")


def test_embed(server: Server, target: str) -> None:
    result = call(target, "embed", "--model", "vectors", "--raw", "--dimensions", "5", "A text")
    assert cells(result) == [["A", "text", "7", "5", "0.5000", "-0.5000", "0.2500", "0.0000"]]
    assert (server.request.normalize, server.request.dimensions) == (False, 5)
    listed = json.loads(call(target, "embed", "--model", "vectors", "--json", "A text").stdout)
    assert listed["results"][0]["values"] == [0.5, -0.5, 0.25, 0.0, 0.125]
    assert server.request.normalize
    assert not server.request.HasField("dimensions")
    assert not server.request.HasField("prompt_name")
    call(target, "embed", "--model", "vectors", "--prompt", "query", "A text")
    assert server.request.prompt_name == "query"


def test_pairs_must_match_the_texts(target: str) -> None:
    result = call(target, "classify", "--model", "nli", "A", "C", "--pair", "B")
    assert result.exit_code == 2
    assert "--pair: given 1 times for 2 texts" in result.stderr


def test_tokens(server: Server, target: str) -> None:
    result = call(target, "tokens", "--model", "ner", "--aggregation", "max", "María visits 東京🙂", "nothing")
    assert cells(result) == [
        ["María", "visits", "東京🙂", "María", "PER", "0.5000", "0-5"],
        ["東京🙂", "LOC", "0.2500", "11-16"],
        ["nothing", "-", "-", "-", "-"],
    ]
    assert server.request.aggregation == classification_pb2.AGGREGATION_MAX


def test_tokens_as_json_keep_zeros_and_characters(target: str) -> None:
    result = call(target, "tokens", "--model", "ner", "--json", "María visits 東京🙂")
    span = json.loads(result.stdout)["results"][0]["spans"][0]
    assert span == {"label": "PER", "score": 0.5, "start": 0, "end": 5, "text": "María"}
    assert "東京🙂" in result.stdout


def test_help_shows_an_example(target: str) -> None:
    assert "tuneserve call classify --model sentiment" in call(target, "--help").stdout
