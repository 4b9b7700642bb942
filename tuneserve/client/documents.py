"""Calls about the documents of an index: what each is asked, and how its answer is read."""

from collections.abc import Mapping, Sequence

from tuneserve.client import results
from tuneserve.client.answers import word
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
    query: str = "",
    *,
    liked: Sequence[str] = (),
    disliked: Sequence[str] = (),
    readers: Sequence[str] = (),
    filters: Mapping[str, str | Sequence[str]] | None = None,
    limit: int | None = None,
    rerank: bool | None = None,
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[results.Passages]:
    """Finds the passages in an index that fit a query, or documents that were liked, best first.

    `liked` and `disliked`: ids of documents to find more and less like; the query may be empty then, and they are not
    found themselves. `readers`: for whom, the person's name and groups. `filters`: a value, or several of which one
    holds, for each key of the documents' metadata. `limit`: 10 if None. `rerank`: whether the index's ranking model
    orders them; if None, it does where there is one, unless documents were liked or disliked. `priority` and `timeout`
    are as in `classify`. Raises CallError.
    """
    request = pb.SearchRequest(
        index=index,
        query=query,
        liked=liked,
        disliked=disliked,
        readers=readers,
        filters=_filters(filters),
        limit=limit,
        rerank=rerank,
        priority=priority,
    )
    return Call(AnswerServiceStub, "Search", request, _passages, timeout)


def answer(
    index: str,
    question: str | Sequence[Mapping[str, str]],
    *,
    readers: Sequence[str] = (),
    filters: Mapping[str, str | Sequence[str]] | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[results.Answer]:
    """Answers a question from the documents of an index, and yields the text as it is made.

        for text in (answer := client.answer("docs", "Who pays the deposit?")):
            print(text, end="")
        print(answer.result.outcome, answer.result.citations)

    `question`: a text, or a conversation whose last message asks: {"role": "user", "content": "Who pays?"} and so on.
    `limit`: how many passages to answer from; 5 if None. `max_tokens`, `temperature` and `seed` are for the index's
    generation model. The other arguments are as in `search`. Iterating raises CallError.
    """
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
    request = pb.AnswerRequest(
        index=index,
        messages=[pb.AnswerMessage(**turn) for turn in turns],
        readers=readers,
        filters=_filters(filters),
        limit=limit,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        priority=priority,
    )
    return Call(AnswerServiceStub, "Answer", request, _answer, timeout)


class AnswerParts:
    """An answer that arrives in parts."""

    def __init__(self) -> None:
        self._joined = pb.AnswerResponse()
        self._texts = list[str]()

    def add(self, part: pb.AnswerResponse) -> str:
        """Adds a part; returns its text."""
        self._texts.append(part.text)
        self._joined.MergeFrom(part)
        return part.text

    def joined(self) -> pb.AnswerResponse:
        """Returns everything received so far as one message."""
        self._joined.text = "".join(self._texts)
        return self._joined


def _filters(filters: Mapping[str, str | Sequence[str]] | None) -> list[pb.Filter]:
    return [
        pb.Filter(key=key, values=[values] if isinstance(values, str) else values)
        for key, values in (filters or {}).items()
    ]


def _answer(response: pb.AnswerResponse) -> results.Answer:
    retrieval, end = response.retrieval, response.end
    citations = [
        results.Citation(one.start, one.end, one.document_id, one.document_start, one.document_end)
        for one in end.citations
    ]
    return results.Answer(
        text=response.text,
        outcome=word(pb.AnswerOutcome, "ANSWER_OUTCOME_", end.outcome),
        citations=tuple(citations),
        citations_dropped=end.citations_dropped,
        query=retrieval.query,
        passages=_passages(retrieval.found),
        answerable=retrieval.answerable if retrieval.HasField("answerable") else None,
        usage=results.Usage(end.usage.prompt_tokens, end.usage.completion_tokens),
        generation_model_version=end.generation_model_version,
    )


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
