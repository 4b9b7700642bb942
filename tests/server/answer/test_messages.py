import grpc
import pytest

from tuneserve.server.answer.messages import passage
from tuneserve.server.answer.rows import Row
from tuneserve.server.answer.scores import Scored
from tuneserve.v1 import answer_pb2 as pb

DOCUMENT = {"id": "1", "text": "the film was good"}


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (pb.UpsertDocumentsRequest(), "documents"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(**DOCUMENT)] * 1025), "documents"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(**DOCUMENT)] * 2), "documents[1].id: is a duplicate of"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(text="a")]), "documents[0].id"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(id="a" * 513, text="a")]), "documents[0].id"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(id="a", text=" ")]), "documents[0].text"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(id="a", text="a" * 262145)]), "documents[0].text"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(title="a" * 513, **DOCUMENT)]), "documents[0].title"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(reply="", **DOCUMENT)]), "documents[0].reply"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(readers=["a", ""], **DOCUMENT)]), "documents[0].readers[1]"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(readers=["a"] * 257, **DOCUMENT)]), "documents[0].readers"),
        (pb.UpsertDocumentsRequest(documents=[pb.Document(metadata={"a=b": ""}, **DOCUMENT)]), "documents[0].metadata"),
        (
            pb.UpsertDocumentsRequest(documents=[pb.Document(metadata={"a": "b" * 1025}, **DOCUMENT)]),
            "documents[0].metad",
        ),
        (pb.DeleteDocumentsRequest(), "ids"),
        (pb.DeleteDocumentsRequest(ids=["a", "a"]), "ids[1]: is a duplicate of ids[0]"),
        (pb.SearchRequest(), "query"),
        (pb.SearchRequest(query="a" * 8193), "query"),
        (pb.SearchRequest(query="a", limit=0), "limit"),
        (pb.SearchRequest(query="a", limit=101), "limit"),
        (pb.SearchRequest(query="a", rerank=True), "rerank"),
        (pb.SearchRequest(query="a", readers=[" "]), "readers[0]"),
        (pb.SearchRequest(query=" ", liked=["1"]), "query"),
        (pb.SearchRequest(disliked=["1"]), "query"),
        (pb.SearchRequest(liked=["1"] * 101), "liked: has 101 entries; allowed: 0 to 100"),
        (pb.SearchRequest(liked=["1", "1"]), "liked[1]: is a duplicate of liked[0]"),
        (pb.SearchRequest(query="a", disliked=[""]), "disliked[0]"),
        (pb.SearchRequest(liked=["1", "2"], disliked=["2"]), "disliked[0]: is also among liked"),
        (pb.SearchRequest(liked=["1"], rerank=True), "rerank"),
        (pb.SearchRequest(query="a", offset_unit=9), "offset_unit"),
        (pb.SearchRequest(query="a", filters=[pb.Filter(key="a")]), "filters[0].values"),
        (pb.SearchRequest(query="a", filters=[pb.Filter(key="a b", values=["a"])]), "filters[0].key"),
    ],
)
async def test_bad_fields_are_named(answers, refused, call, field):
    call.index = "docs"
    method = getattr(answers.stub, type(call).__name__.removesuffix("Request"))
    error = await refused(method(call), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(field)


@pytest.mark.parametrize(("unit", "offsets"), [("code_point", (5, 8)), ("utf8", (9, 17)), ("utf16", (6, 10))])
def test_offsets_are_in_the_unit_asked_for(unit, offsets):
    row = Row("1", 0, "", "née", "née\n東 🙂", 5, 9, 6, [], [""], None, None)
    message = passage(Scored(row, 0.5, 0.0, 0.5), unit)
    assert (message.text, message.start, message.end) == ("東 🙂", offsets[0], offsets[1])


def test_a_title_is_cut_off_where_it_was_put():
    for title, read, text in (("a", "a\na\nb", "a\nb"), ("", "a\nb", "a\nb")):
        row = Row("1", 0, "", title, read, 0, 0, 0, ["k=a=b", "l="], [""], "yes", None)
        message = passage(Scored(row, 0.5, 0.0, 0.5), "code_point")
        assert (message.text, dict(message.metadata), message.reply) == (text, {"k": "a=b", "l": ""}, "yes")
