"""Calls about the documents of an index: what each is asked, and how its answer is read."""

from collections.abc import Mapping, Sequence

from tuneserve.client import results
from tuneserve.client.call import Call
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1.answer_pb2_grpc import AnswerServiceStub


def upsert_documents(
    index: str, documents: Sequence[results.Document], *, priority: int | None = None, timeout: float | None = None
) -> Call[results.Written]:
    """Adds documents to an index, or replaces those of the same id: all of them, or none if it fails.

    `priority` and `timeout` are as in `classify`. Raises CallError.
    """
    given = [
        pb.Document(
            id=one.id, title=one.title, text=one.text, metadata=one.metadata, readers=one.readers, reply=one.reply
        )
        for one in documents
    ]
    request = pb.UpsertDocumentsRequest(index=index, documents=given, priority=priority)
    return Call(AnswerServiceStub, "UpsertDocuments", request, _written, timeout)


def delete_documents(index: str, ids: Sequence[str], *, timeout: float | None = None) -> Call[results.Deleted]:
    """Deletes documents of an index by id; those that there are not are ignored. Raises CallError."""
    request = pb.DeleteDocumentsRequest(index=index, ids=ids)
    return Call(AnswerServiceStub, "DeleteDocuments", request, _deleted, timeout)


def search(
    index: str,
    query: str,
    *,
    readers: Sequence[str] = (),
    filters: Mapping[str, str | Sequence[str]] | None = None,
    limit: int | None = None,
    rerank: bool | None = None,
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[results.Passages]:
    """Finds the passages in an index that fit a query, best first.

    `readers`: for whom, the person's name and groups. `filters`: a value, or several of which one holds, for each key
    of the documents' metadata. `limit`: 10 if None. `rerank`: whether the index's ranking model orders them; if None,
    it does where there is one. `priority` and `timeout` are as in `classify`. Raises CallError.
    """
    conditions = [
        pb.Filter(key=key, values=[values] if isinstance(values, str) else values)
        for key, values in (filters or {}).items()
    ]
    request = pb.SearchRequest(
        index=index, query=query, readers=readers, filters=conditions, limit=limit, rerank=rerank, priority=priority
    )
    return Call(AnswerServiceStub, "Search", request, _passages, timeout)


def _written(response: pb.UpsertDocumentsResponse) -> results.Written:
    usage = results.Usage(response.usage.prompt_tokens, response.usage.completion_tokens)
    return results.Written(response.written, response.unchanged, response.index_version, usage, response.model_version)


def _deleted(response: pb.DeleteDocumentsResponse) -> results.Deleted:
    return results.Deleted(response.deleted, response.index_version)


def _passages(response: pb.SearchResponse) -> results.Passages:
    return results.Passages(
        tuple(map(_passage, response.passages)),
        results.Usage(response.usage.prompt_tokens, response.usage.completion_tokens),
        response.model_version,
        response.index_version,
        response.ranking_model_version,
    )


def _passage(one: pb.Passage) -> results.Passage:
    return results.Passage(
        document_id=one.document_id,
        title=one.title,
        text=one.text,
        start=one.start,
        end=one.end,
        metadata=dict(one.metadata),
        reply=one.reply if one.HasField("reply") else None,
        score=one.score,
        dense_score=one.dense_score,
        keyword_score=one.keyword_score,
        ranking_score=one.ranking_score if one.HasField("ranking_score") else None,
    )
