"""A model's answers on held-out rows, and their quality (tuneserve.evaluation.quality)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm

from tuneserve.checkpoint import encoders, entities
from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation import preferences, quality, retrieval, significance
from tuneserve.finetune.config import PAIRS, WRITERS
from tuneserve.finetune.data import tokens
from tuneserve.finetune.data.disk_rows import DiskRows
from tuneserve.finetune.data.tokens import IGNORED, Target, encode, lengths, with_offsets

# Of ranking: nDCG@10 of the passages in the order of their similar letters.
BY_LETTERS = "letters/ndcg@10"
BATCH_TOKENS = 2048  # padding included: bounds the memory of logits over a large vocabulary


@dataclass(frozen=True)
class Answers:
    """A model's answers, row by row, and the metrics over all rows."""

    metrics: dict[str, float]
    # Of each row, the mean over its labels or tokens; for regression, the absolute error; for embedding, what its nDCG
    # lacks; for preference, by how much the reward of its bad answer is above that of its good one.
    losses: list[float]
    predicted: list[Any] = field(default_factory=list)  # labels, numbers, entities or passages; empty for generation
    scores: list[list[float]] = field(default_factory=list)  # texts: probabilities by label, or the predicted number
    row_sums: quality.RowSums = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """The metrics, and both ends of the headline metric's interval."""
        return self.metrics | significance.ends(self.metrics, self.row_sums)


def evaluate(
    model: Any,
    tokenizer: Any,
    target: Target,
    rows: Sequence[Row],
    bf16: bool,
    base: preferences.Sides | None = None,
) -> Answers:
    """Returns the model's answers to rows, with the metrics of the target's task.

    `base`: for preference, the base model's `likelihoods`; None: those of the model without its adapter, if it has one.
    """
    if target.task in PAIRS:
        return (_retrieval if target.task == "embedding" else _ranking)(model, tokenizer, target, rows, bf16)
    if target.task == "preference":
        base = base or base_likelihoods(model, tokenizer, target, rows, bf16)
        return _preferences(rows, likelihoods(model, tokenizer, target, rows, bf16), base)
    encoded = encode(tokenizer, target, rows)
    if target.task == "generation":
        return _generation(model, tokenizer, encoded, bf16)
    outputs = logits(model, tokenizer, target, encoded, bf16)
    if target.task == "token-classification":
        return _entities(tokenizer, target, rows, encoded, outputs)
    return texts(target, rows, torch.cat(outputs))


def _retrieval(model: Any, tokenizer: Any, target: Target, rows: Sequence[Row], bf16: bool) -> Answers:
    """Each query is searched for among the passages of all rows."""
    library = retrieval.Library.of(rows)

    def vectors(names: tuple[str, ...], given: Sequence[str]) -> Any:
        before = encoders.prompt(target.prompts, names)
        encoded = DiskRows(tokens.texts(tokenizer, ((before + text,) for text in given), target.max_length))
        return torch.cat(logits(model, tokenizer, target, encoded, bf16)).numpy()

    queries, passages = vectors(encoders.QUERY, library.queries), vectors(encoders.PASSAGE, library.passages)
    answers = _found(library, retrieval.search(queries, passages))
    for size in target.sizes:
        shorter = _found(library, retrieval.search(queries[:, :size], passages[:, :size]))
        answers.metrics[f"{size} dimensions/ndcg@10"] = shorter.metrics["ndcg@10"]
    return answers


def _ranking(model: Any, tokenizer: Any, target: Target, rows: Sequence[Row], bf16: bool) -> Answers:
    """Each query's shortlist is ranked."""
    library = retrieval.Library.of(rows)
    encoded = DiskRows(tokens.texts(tokenizer, library.pairs, target.max_length))
    scores = torch.cat(logits(model, tokenizer, target, encoded, bf16))[:, 0].tolist()
    answers = _found(library, library.ranked(scores))
    answers.metrics[BY_LETTERS] = _found(library, library.by_letters).metrics["ndcg@10"]
    return answers


def _found(library: retrieval.Library, found: Sequence[Sequence[int]]) -> Answers:
    metrics, sums = quality.retrieval(library.right(found), library.relevant)
    return Answers(
        metrics,
        [1 - value for value, _ in sums],
        [library.passages[places[0]] for places in found],
        row_sums=sums,
    )


def texts(target: Target, rows: Sequence[Row], outputs: torch.Tensor) -> Answers:
    """Returns the answers that the logits [rows, classes] of a sequence classifier give."""
    if target.problem_type == "regression":
        numbers, expected = outputs[:, 0].tolist(), [row["label"] for row in rows]
        errors = [abs(gold - guess) for gold, guess in zip(expected, numbers, strict=True)]
        sums = quality.number_rows(expected, numbers)
        return Answers(quality.regression(expected, numbers), errors, numbers, outputs.tolist(), sums)
    logits = outputs / target.temperature
    if target.problem_type == "multi-label":
        present = torch.tensor([[float(label in row["labels"]) for label in target.labels] for row in rows])
        sets = [[target.labels[int(place)] for place in line.nonzero()] for line in outputs > 0]
        losses = functional.binary_cross_entropy_with_logits(logits, present, reduction="none").mean(-1)
        metrics = quality.multi_label([row["labels"] for row in rows], sets, target.labels)
        metrics |= _calibration(target, outputs, present)
        sums = quality.right_rows([set(row["labels"]) for row in rows], list(map(set, sets)))
        return Answers(metrics, losses.tolist(), sets, logits.sigmoid().tolist(), sums)
    expected = [row["label"] for row in rows]
    right = torch.tensor([target.labels.index(label) for label in expected])
    predicted = [target.labels[place] for place in outputs.argmax(-1).tolist()]
    metrics = quality.sequence_classification(expected, predicted, target.labels)
    metrics |= _calibration(target, outputs, right)
    losses = functional.cross_entropy(logits, right, reduction="none")
    sums = quality.right_rows(expected, predicted)
    return Answers(metrics, losses.tolist(), predicted, logits.softmax(-1).tolist(), sums)


def _calibration(target: Target, outputs: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Returns the calibration error of the probabilities, with and without the target's temperature."""
    metrics = {"calibration_error": _gap(target, outputs / target.temperature, right)}
    if target.temperature != 1:
        metrics["unscaled_calibration_error"] = _gap(target, outputs, right)
    return metrics


def _gap(target: Target, logits: torch.Tensor, right: torch.Tensor) -> float:
    if target.problem_type == "multi-label":
        return quality.calibration_error(logits.sigmoid().flatten().tolist(), right.flatten().tolist())
    best = logits.softmax(-1).max(-1)
    return quality.calibration_error(best.values.tolist(), (best.indices == right).tolist())


def _entities(
    tokenizer: Any, target: Target, rows: Sequence[Row], encoded: Sequence[Row], outputs: Sequence[torch.Tensor]
) -> Answers:
    """Text that was truncated counts as text without predicted entities."""
    found, losses = [], []
    for row, one, output in zip(rows, encoded, outputs, strict=True):
        _, offsets = with_offsets(tokenizer, row["text"], target.max_length)
        found.append(_spans(row["text"], [target.labels[label] for label in output.argmax(-1).tolist()], offsets))
        expected = torch.tensor([label for label in one["labels"] if label != IGNORED])
        total = float(functional.cross_entropy(output, expected, reduction="sum"))
        losses.append(total / max(1, len(expected)))
    there = list(map(entities.spans_of, rows))
    return Answers(
        quality.token_classification(there, found), losses, found, row_sums=quality.entity_rows(there, found)
    )


def _spans(text: str, tags: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[entities.Span]:
    """A word has the tag of its first token, as tuneserve.evaluation.measurement asks the server for it."""
    places = [offset for offset in offsets if offset[0] < offset[1]]
    words = entities.words(text, places)
    ends = [(places[first][0], places[last - 1][1]) for first, last in words]
    return entities.found(text, [tags[first] for first, _ in words], ends)


def logits(
    model: Any, tokenizer: Any, target: Target, encoded: Sequence[Row], bf16: bool = False, limit: int | None = None
) -> list[torch.Tensor]:
    """Returns a float32 tensor [positions, classes] for each encoded row, on the CPU, in the rows' order.

    Positions: one for a sequence classifier; one for an encoder, and its "logits" are the vector; every token but
    special ones for a token classifier; for generation, the positions that predict the answer's tokens. `limit` keeps
    only the first ones.
    """
    found = dict(each(model, tokenizer, target, encoded, bf16, limit))
    return [found[index] for index in range(len(encoded))]


def each(
    model: Any, tokenizer: Any, target: Target, encoded: Sequence[Row], bf16: bool, limit: int | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (index of a row, its tensor as in `logits`), in the order in which rows are computed."""
    for indices, output in _forward(model, tokenizer, encoded, bf16, target.pooling):
        for place, index in enumerate(indices):
            if target.task in ("sequence-classification", *PAIRS):
                chosen = output[place : place + 1]
            else:
                counted = torch.tensor(encoded[index]["labels"]) != IGNORED
                positions = counted.nonzero()[:limit, 0] - (1 if target.task in WRITERS else 0)
                chosen = output[place][positions.to(output.device)]
            yield index, chosen.float().cpu()


def _generation(model: Any, tokenizer: Any, encoded: Sequence[Row], bf16: bool) -> Answers:
    total, tokens, losses, sums = 0.0, 0, [0.0] * len(encoded), [[0.0, 0.0] for _ in encoded]
    for indices, output in _forward(model, tokenizer, encoded, bf16):
        for place, index in enumerate(indices):
            targets = torch.tensor(encoded[index]["labels"], device=output.device)[1:]
            counted = targets != IGNORED
            scores = output[place, : len(targets)][counted].float().log_softmax(-1)
            likelihood, count = float(scores.gather(1, targets[counted][:, None]).sum()), int(counted.sum())
            losses[index], sums[index] = -likelihood / max(1, count), [likelihood, float(count)]
            total += likelihood
            tokens += count
    return Answers(quality.generation(total, tokens), losses, row_sums=sums)


def likelihoods(model: Any, tokenizer: Any, target: Target, rows: Sequence[Row], bf16: bool) -> preferences.Sides:
    """Returns log-likelihood and number of tokens of each good answer, and of each bad one."""
    both = preferences.sides(rows)

    def of(some: Sequence[Row]) -> quality.RowSums:
        return _generation(model, tokenizer, encode(tokenizer, target, some), bf16).row_sums if some else []

    return preferences.Sides(of(both.good), of(both.bad))


def base_likelihoods(
    model: Any, tokenizer: Any, target: Target, rows: Sequence[Row], bf16: bool
) -> preferences.Sides | None:
    """Returns the same of the model without its adapter; None if it has none."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return None
    with model.disable_adapter():
        return likelihoods(model, tokenizer, target, rows, bf16)


def _preferences(rows: Sequence[Row], own: preferences.Sides, base: preferences.Sides | None) -> Answers:
    paired = any("rejected" in row for row in rows)
    found = preferences.metrics(own, base, paired)
    found |= quality.generation(*(sum(column) for column in zip(*own.good, strict=True)))
    if base is None:
        return Answers(found, [], row_sums=own.good)
    rewards = preferences.rewards(own, base)
    good, bad = iter(rewards.good), iter(rewards.bad)
    losses = [next(bad) - next(good) if paired else -next(good) if row["label"] else next(bad) for row in rows]
    return Answers(found, losses, row_sums=own.good)


def _forward(
    model: Any, tokenizer: Any, encoded: Sequence[Row], bf16: bool, pooling: str = ""
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yields (indices, logits, or vectors) of batches of rows that have about the same length."""
    autocast: AbstractContextManager[Any] = torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext()
    model.eval()
    batches = _batches(lengths(encoded))
    for indices in tqdm(batches, desc="evaluating", unit="batch", leave=False, dynamic_ncols=True):
        rows = (encoded[index] for index in indices)
        inputs = [{key: row[key] for key in tokenizer.model_input_names if key in row} for row in rows]
        batch = tokenizer.pad(inputs, padding_side="right", return_tensors="pt")
        batch = {key: value.to(model.device) for key, value in batch.items()}
        with torch.inference_mode(), autocast:
            output = model(**batch)
        output = (
            encoders.pooled(output.last_hidden_state, batch["attention_mask"], pooling) if pooling else output.logits
        )
        yield indices, output


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Returns the indices of `lengths`, shortest first, in batches of at most BATCH_TOKENS."""
    batches: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches
