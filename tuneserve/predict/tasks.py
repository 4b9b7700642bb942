"""What each task needs of a row, how the server is asked for it, and what its answer adds to the row."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneserve.checkpoint.rows import Row
from tuneserve.client import AsyncClient
from tuneserve.client.results import Classification, Entities, Generation
from tuneserve.client.texts import Truncation
from tuneserve.errors import UserError
from tuneserve.v1 import checkpoint_pb2 as pb

# Every column that predict adds begins with this. A row that can't be answered has `predicted_error` alone.
PREFIX = "predicted_"
ERROR = f"{PREFIX}error"
# A label of a multi-label classifier is predicted from this probability on.
_LIKELY = 0.5


@dataclass(frozen=True)
class Options:
    """What the user chose about the answers."""

    truncation: Truncation = "end"
    all_scores: bool = False
    max_tokens: int = 256
    temperature: float = 0.0
    prompt_name: str | None = None


Answer = dict[str, Any]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Returns a row with the task's names for its columns, beside their own."""
    return row | {name: row[column] for name, column in columns.items() if column in row}


@dataclass(frozen=True)
class Task:
    """One kind of prediction."""

    read: Callable[[Row], Any]  # the input in a row; raises ValueError with the reason if there is none
    ask: Callable[[AsyncClient, str, Sequence[Any]], Awaitable[list[Answer]]]  # what to add to each row, by model name
    batch: int = 64  # most inputs of one call
    calls: int = 4  # at once: enough that the engine never waits for the next


def task_of(manifest: pb.Checkpoint, row: Row, options: Options) -> Task:
    """Returns what a checkpoint predicts for rows such as this one."""
    if manifest.task == pb.TASK_GENERATION:
        return _generation(options)
    if manifest.task == pb.TASK_TOKEN_CLASSIFICATION:
        return _entities(options)
    if options.truncation == "windows" and (manifest.task == pb.TASK_EMBEDDING or "query" in row):
        raise UserError("--truncation windows is for labels and entities", "allowed here: end, reject")
    if manifest.task == pb.TASK_EMBEDDING:
        if options.prompt_name is not None and options.prompt_name not in manifest.prompts:
            known = ", ".join(sorted(manifest.prompts)) or "none"
            raise UserError(f"--prompt {options.prompt_name}: not a prompt of the checkpoint", f"it has: {known}")
        return _embeddings(options)
    return _ranking(options) if "query" in row else _classification(manifest.problem_type, options)


def _classification(problem: "pb.ProblemType", options: Options) -> Task:
    def read(row: Row) -> Any:
        pair = row.get("text_pair")
        return _text(row, "text") if pair is None else (_text(row, "text"), _text(row, "text_pair"))

    async def ask(client: AsyncClient, model: str, inputs: Sequence[Any]) -> list[Answer]:
        # All scores of all labels only where they are asked for: they may be a thousand.
        is_single = problem == pb.PROBLEM_TYPE_SINGLE_LABEL and not options.all_scores
        answers = await client.classify(
            model, inputs, truncation=options.truncation, top_k=1 if is_single else None, timeout=_SECONDS
        )
        return [add(answer) for answer in answers]

    def add(answer: Classification) -> Answer:
        if problem == pb.PROBLEM_TYPE_REGRESSION:
            return {f"{PREFIX}value": answer.best.score}
        if problem == pb.PROBLEM_TYPE_MULTI_LABEL:
            found: Answer = {f"{PREFIX}labels": [one.label for one in answer.labels if one.score >= _LIKELY]}
        else:
            found = {f"{PREFIX}label": answer.best.label, f"{PREFIX}score": answer.best.score}
        if options.all_scores:
            found[f"{PREFIX}scores"] = {one.label: one.score for one in answer.labels}
        return found

    return Task(read, ask)


def _entities(options: Options) -> Task:
    async def ask(client: AsyncClient, model: str, inputs: Sequence[str]) -> list[Answer]:
        answers = await client.find_entities(
            model, inputs, aggregation="first", truncation=options.truncation, timeout=_SECONDS
        )
        return [add(answer) for answer in answers]

    def add(answer: Entities) -> Answer:
        columns = ("start", "end", "label", "score", "text")
        return {f"{PREFIX}entities": [{key: getattr(one, key) for key in columns} for one in answer]}

    return Task(lambda row: _text(row, "text"), ask)


def _embeddings(options: Options) -> Task:
    async def ask(client: AsyncClient, model: str, inputs: Sequence[str]) -> list[Answer]:
        answers = await client.embed(
            model, inputs, prompt_name=options.prompt_name, truncation=_plain(options), timeout=_SECONDS
        )
        return [{f"{PREFIX}embedding": list(answer.values)} for answer in answers]

    return Task(lambda row: _text(row, "text"), ask)


def _ranking(options: Options) -> Task:
    def read(row: Row) -> tuple[str, list[str]]:
        candidates = row.get("candidates")
        if not isinstance(candidates, list) or not candidates or not all(isinstance(one, str) for one in candidates):
            raise ValueError(f"candidates: {'is missing' if candidates is None else 'a list of texts is needed'}")
        return _text(row, "query"), candidates

    async def ask(client: AsyncClient, model: str, inputs: Sequence[tuple[str, list[str]]]) -> list[Answer]:
        [(query, candidates)] = inputs
        answer = await client.rank(model, query, candidates, truncation=_plain(options), timeout=_SECONDS)
        scores = {one.index: one.score for one in answer}
        return [{f"{PREFIX}ranking": list(scores), f"{PREFIX}scores": [scores[i] for i in range(len(candidates))]}]

    return Task(read, ask, batch=1)


def _generation(options: Options) -> Task:
    def read(row: Row) -> Row:
        if "messages" not in row:
            return {"prompt": _text(row, "prompt")}
        messages = row["messages"]
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            raise ValueError("messages: a list of objects is needed")
        # In rows for training, the last message is the answer.
        if messages and messages[-1].get("role") == "assistant":
            messages = messages[:-1]
        if not messages:
            raise ValueError("messages: there is none to answer")
        return {"messages": messages} | {key: row[key] for key in ("tools", "documents") if row.get(key)}

    async def ask(client: AsyncClient, model: str, inputs: Sequence[Row]) -> list[Answer]:
        [one] = inputs
        call = client.generate if "prompt" in one else client.chat
        answer: Generation = await call(
            model, **one, max_tokens=options.max_tokens, temperature=options.temperature, timeout=_SECONDS
        )
        found: Answer = {f"{PREFIX}text": answer.text, f"{PREFIX}finish_reason": answer.finish_reason}
        if answer.tool_calls:
            found[f"{PREFIX}tool_calls"] = [{"name": one.name, "arguments": one.arguments} for one in answer.tool_calls]
        return [found]

    return Task(read, ask, batch=1, calls=256)


# A call waits as long as its engine is alive, which the server watches.
_SECONDS = 24 * 3600.0


def _plain(options: Options) -> Any:
    return "reject" if options.truncation == "reject" else "end"


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        raise ValueError(f"{column}: is missing; the row has {', '.join(map(str, row)) or 'nothing'}")
    if not isinstance(value, str):
        raise ValueError(f"{column}: is not a text")
    return value
