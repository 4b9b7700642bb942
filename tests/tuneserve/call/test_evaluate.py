import json
from pathlib import Path
from typing import Any

import pytest

from tuneserve.call import evaluate
from tuneserve.call.evaluate import Query
from tuneserve.errors import UserError
from tuneserve.evaluation import gate

from .conftest import Server, call


def written(tmp_path: Path, count: int) -> str:
    rows = [{"query": f"query {number}", "documents": ["faq"]} for number in range(count)]
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_an_index_is_measured(server: Server, target: str, tmp_path: Path) -> None:
    result = call(target, "evaluate", "--index", "docs", "--reader", "ann", written(tmp_path, 21))
    assert result.exit_code == 0, result.stderr
    table, said = result.stdout.split("\n\n")
    # The server finds the right document each time.
    assert [line.split()[-3:] for line in table.splitlines()[1:]] == [["1.0000"] * 3] * 3
    assert "both, keyword_weight 0 " in table
    assert "10 queries that did not choose the weight" in said
    assert "+0.0000" in said
    assert (server.request.limit, list(server.request.readers)) == (100, ["ann"])


def test_a_ranking_model_is_measured_too(server: Server, target: str, tmp_path: Path) -> None:
    result = call(target, "evaluate", "--index", "ranked", written(tmp_path, 20))
    assert "ranked by reranker@1" in result.stdout
    assert not server.request.HasField("rerank")


def test_a_gate_is_fitted(server: Server, target: str, tmp_path: Path) -> None:
    # Of documents that the server finds, and as many that it does not.
    rows = [{"query": "Who pays?", "documents": ["faq"]}, {"query": "A film in Tokyo", "documents": []}] * 24
    # Both kinds are in both halves, which choose and measure the weight.
    rows[1::4], rows[2::4] = rows[2::4], rows[1::4]
    file, gate_file = tmp_path / "queries.jsonl", tmp_path / "gate.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call(target, "evaluate", "--index", "docs", "--gate", str(gate_file), str(file))
    assert result.exit_code == 0, result.stderr
    assert "Gate: AUROC 1.000 (95 % interval 1.000 to 1.000) on 48 cases" in result.stdout
    assert "100% of the answerable pass, 100% of the others are stopped" in result.stdout
    loaded = gate.load(gate_file)
    assert "ranking" not in loaded.answerable.weights
    assert (loaded.answerable.threshold, loaded.ranking_model) == (0.5, "")


def test_a_gate_that_can_not_be_fitted_is_not_written(target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gate\.json: not written"):
        call(target, "evaluate", "--index", "docs", "--gate", str(tmp_path / "gate.json"), written(tmp_path, 20))
    assert not (tmp_path / "gate.json").exists()


def test_few_queries_are_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 19 queries with documents"):
        call(target, "evaluate", "--index", "docs", written(tmp_path, 19))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "a", "documents": ["b", "c"]}, Query("a", frozenset("bc"))),
        ({"query": "a", "documents": "b; c"}, Query("a", frozenset("bc"))),
        ({"documents": ["b"]}, "query is missing or blank"),
        ({"query": "a", "documents": " ;"}, Query("a", frozenset())),
        ({"query": "a"}, "documents is not a list of ids"),
        ({"query": "a", "documents": [1]}, "documents is not a list of ids"),
        ("not JSON", "not JSON"),
    ],
)
def test_rows(row: Any, expected: Any) -> None:
    if isinstance(expected, Query):
        assert evaluate._query(row) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            evaluate._query(row)
