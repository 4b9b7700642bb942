import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from tuneserve.call import documents
from tuneserve.cli import cli
from tuneserve.v1 import answer_pb2 as pb

from .conftest import Server, call, cells


def index(target: str, *arguments: Any) -> Result:
    given = ["index", *map(str, arguments), "--target", target]
    return CliRunner().invoke(cli, given, catch_exceptions=False)


def document(**fields: Any) -> pb.Document:
    return pb.Document(**{"id": "1", "text": "Tenants do."} | fields)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FULL = {"id": "1", "title": "Who pays?", "text": "Tenants do.", "readers": ["ann", "o'neil"], "reply": "Tenants."}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_rows_become_documents(server: Server, target: str, tmp_path: Path, name: str) -> None:
    other = {"id": "2", "text": "No.", "metadata.year": 2026}
    rows = [FULL | {"metadata": {"lang": "en", "none": None}, "metadata.year": None}, other]
    result = index(target, "docs", written(tmp_path / name, rows))
    assert result.stdout == "docs: 2 documents written, 1 unchanged, version 7\n"
    assert server.request.index == "docs"
    assert list(server.request.documents) == [
        document(**FULL, metadata={"lang": "en"}),
        document(id="2", text="No.", metadata={"year": "2026"}),
    ]


def test_tables_of_text_become_documents(server: Server, target: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id,text,readers,metadata,metadata.year,reply\n1,Tenants do.,ann; o'neil,,2026,\n")
    assert index(target, "docs", file).exit_code == 0
    [sent] = server.request.documents
    assert sent == document(readers=["ann", "o'neil"], metadata={"year": "2026"})


def test_files_without_documents_are_named(target: str, tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.jsonl", []), written(tmp_path / "b.jsonl", [])
    result = index(target, "docs", first, second)
    assert (result.exit_code, f"error: {first}, {second}: no documents" in result.stderr) == (2, True)


def test_many_documents_are_many_calls(server: Server, target: str, tmp_path: Path) -> None:
    small = written(tmp_path / "a.jsonl", [{"id": str(number), "text": "a"} for number in range(130)])
    large = written(tmp_path / "b.jsonl", [{"id": str(number), "text": "a" * 200_000} for number in range(2)])
    server.sizes.clear()
    assert index(target, "docs", small, large).exit_code == 0
    assert server.sizes == [64, 64, 3, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1"}, "a.jsonl:2: text is missing or blank"),
        ({"text": "a"}, "a.jsonl:2: id is missing or blank"),
        ({"id": "1", "text": "a", "reader": ["ann"]}, "a.jsonl:2: unknown column 'reader'"),
        ({"id": "1", "text": "a", "readers": [1]}, "a.jsonl:2: readers is not a list of texts"),
        ({"id": "1", "text": "a", "metadata": ["x"]}, "a.jsonl:2: metadata is not an object"),
        ({"id": "1", "text": "a", "metadata": {"x": [1]}}, "a.jsonl:2: metadata.x is not text"),
        ({"id": "1", "text": ["a"]}, "a.jsonl:2: text is not text"),
        ([1], "a.jsonl:2: not a JSON object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "0", "text": "a"}\n' + json.dumps(row) + "\n")
    with pytest.raises(documents.UserError, match=message.replace("[", r"\[")):
        list(documents._documents([file]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pdf"
    file.touch()
    with pytest.raises(documents.UserError, match=r"a\.pdf: no known suffix"):
        list(documents._documents([file]))


def test_an_unknown_index_is_the_servers_to_tell(target: str, tmp_path: Path) -> None:
    result = index(target, "other", written(tmp_path / "a.jsonl", [FULL]))
    assert (result.exit_code, "index 'other' is not served here" in result.stderr) == (2, True)
    assert "hint" not in result.stderr


def test_search(server: Server, target: str) -> None:
    asked = ("--reader", "ann", "--reader", "group:x", "--filter", "lang=en", "--filter", "lang=de", "--limit", "2")
    result = call(target, "search", "--index", "docs", *asked, "--no-rerank", "Who pays?")
    assert cells(result) == [["0.5000", "faq", "3-14", "Who", "pays?", "Tenants", "[bold]do.[/bold]"]]
    assert server.request == pb.SearchRequest(
        index="docs",
        query="Who pays?",
        readers=["ann", "group:x"],
        filters=[pb.Filter(key="lang", values=["en", "de"])],
        limit=2,
        rerank=False,
    )
    none = call(target, "search", "--index", "empty", "--liked", "mistyped")
    assert (none.exit_code, none.stdout) == (0, "")
    assert none.stderr == "No passage fits, of those that the reader may read.\n"
    as_json = call(target, "search", "--index", "docs", "--json", "Who pays?")
    assert json.loads(as_json.stdout)["passages"][0]["document_id"] == "faq"
    assert not server.request.HasField("limit")
    assert not server.request.HasField("rerank")
    call(target, "search", "--index", "docs", "--liked", "1", "--liked", "2", "--disliked", "3")
    assert server.request == pb.SearchRequest(index="docs", liked=["1", "2"], disliked=["3"])
    wrong = call(target, "search", "--index", "docs", "--filter", "lang", "x")
    assert (wrong.exit_code, "--filter lang: expected KEY=VALUE" in wrong.stderr) == (2, True)
