"""The data of a run: checks every row of its files, reports all problems at once, and splits into train, validation
and test.

Nothing here needs torch or a tokenizer.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from tuneserve import formats
from tuneserve.checkpoint import entities
from tuneserve.checkpoint.rows import Row, digest, dumps, input_key
from tuneserve.errors import UserError
from tuneserve.finetune.config import CLASSIFIERS, FinetuneConfig
from tuneserve.finetune.data import kept_rows, parents, preferences, previous, schema
from tuneserve.finetune.data.disk_rows import Places
from tuneserve.finetune.data.parents import Parents
from tuneserve.finetune.data.previous import Old
from tuneserve.finetune.data.split import GROUP, Table, counted_labels, first_of_input, shuffled

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 20
_TEST_ORDER = 0  # the seed of the order of a test file's rows, of which the first `max_test_rows` are used
NUMBER = "score"  # the name of the only output of a regression, and of ranking


@dataclass(frozen=True)
class Data:
    """All rows that a run trains on and is measured on. They are on disk, and are read when they are accessed."""

    train: Sequence[Row]
    test: Sequence[Row]
    validation: Sequence[Row]  # a part of the training rows, to choose the best epoch; empty unless asked for
    labels: list[str]  # the position is the class index; empty for tasks without labels
    names: list[str]  # what rows are labelled with: the labels, or the types of entities
    duplicates: int  # training rows dropped because their input is in the new or the old test rows
    old: Old = field(default_factory=Old)  # the checkpoint that training continues from
    replayed: int = 0  # how many training rows are old ones
    sample: Sequence[Row] = ()  # kept in the checkpoint: a sample of all rows trained on, in this run and before
    learned: int = 0  # how many rows were trained on, in this run and before
    parents: Parents = field(default_factory=Parents)  # the rows that base model and teacher have seen
    left_out: Mapping[str, int] = field(default_factory=dict)  # number of unusable rows, by reason

    def label_distribution(self, of: Sequence[Row] | None = None) -> dict[str, float]:
        """Returns each label's share of the rows (default: the training rows), or of the entities, for tokens."""
        counts = Counter(chain.from_iterable(map(counted_labels, self.train if of is None else of)))
        total = sum(counts.values())
        return {name: counts[name] / total for name in self.names} if total else {}

    def repeated(self) -> tuple[int, int]:
        """Returns how many training rows repeat an earlier input, and how many of these have another answer."""
        digests = bytearray()
        for row in self.train:
            digests += digest(input_key(row))
        first = first_of_input(digests)
        again = np.flatnonzero(first != np.arange(len(first)))
        return len(again), sum(self.train[place] != self.train[first[place]] for place in again)


def left_out(split: Data) -> str:
    """Returns a line for people that says how many rows are unusable, and why."""
    reasons = ", ".join(f"{count} with {reason}" for reason, count in split.left_out.items())
    return f"{sum(split.left_out.values())} rows are left out: {reasons}"


class _Problems:
    """The number of bad rows, and the first messages about them."""

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[str] = []

    def add(self, problem: str) -> None:
        self.count += 1
        if self.count <= SHOWN_PROBLEMS:
            self.shown.append(problem)


def load(config: FinetuneConfig) -> Data:
    """Reads, checks and splits the data. The same files and settings always give the same rows in the same order.

    Raises UserError with the number of bad rows and the first of them as `file:line: reason`, and StepFailed if the
    disk is full.
    """
    old, before = previous.load(config), parents.load(config)
    problems, table = _Problems(), Table()

    def read(source: str | None) -> Places:
        return table.add(row for _, row in _checked(config, source, problems)) if source else np.arange(0)

    train = read(config.train)
    names = set(chain.from_iterable(table.label_sets))
    test, sampled = read(config.test), table.add(old.train)
    replay = read(config.replay) if config.replay else sampled if config.replay_share else np.arange(0)
    labels = []
    with suppress(UserError) if problems.count else nullcontext():
        # With bad rows left out, labels may be missing: labels are checked once the rows are corrected.
        labels = _labels(config, names, old.labels)
    if labels:
        _check_labels(config, table, _names(config, labels), problems)
    if problems.count:
        more = f"\n  and {problems.count - SHOWN_PROBLEMS} more" if problems.count > SHOWN_PROBLEMS else ""
        raise UserError(
            f"{problems.count} bad rows in the data, nothing was trained:\n  " + "\n  ".join(problems.shown) + more,
            "correct or remove these rows",
        )
    return _split(config, table, train, test, replay, sampled, labels, old, before)


def _checked(config: FinetuneConfig, source: str, problems: _Problems) -> Iterator[tuple[str, Row]]:
    """Yields (where, row) for the good rows and adds the bad ones to `problems`."""
    columns, read = dict(config.columns or {}), preferences.row if config.task == "preference" else schema.row
    seen = 0
    for where, raw in formats.read(source, config.format):
        seen += 1
        if isinstance(raw, str):
            problems.add(f"{where}: {raw}")
            continue
        missing = [name for name in columns.values() if name not in raw]
        # All rows of a file have the same columns: a wrong mapping shows in the first row.
        if seen == 1 and missing:
            raise UserError(
                f"{where}: no column {missing[0]}, which `columns` names", "found: " + ", ".join(map(str, raw))
            )
        if seen == 1 and config.group_column and config.group_column not in raw:
            raise UserError(
                f"{where}: no column {config.group_column}, which `group_column` names",
                "found: " + ", ".join(map(str, raw)),
            )
        mapped = raw | {ours: raw[theirs] for ours, theirs in columns.items() if theirs in raw}
        try:
            row = read(mapped, config)
        except schema.BadRow as error:
            problems.add(f"{where}: {error}")
        else:
            group = raw.get(config.group_column) if config.group_column else None
            if config.task == "preference" and not config.group_column:
                # Prompts have several answers.
                group = input_key(row)
            # A row without a value belongs to no group.
            yield where, row if group in (None, "") else row | {GROUP: dumps({GROUP: group})}
    if not seen:
        raise UserError(f"{source}: no rows")


def _labels(config: FinetuneConfig, found: Iterable[str], old: Sequence[str]) -> list[str]:
    """Returns the class names in order: as given, or the old ones followed by the new ones found, sorted.

    For tokens: O, and then B- and I- of each type.
    """
    if config.task == "ranking" or config.problem_type == "regression":
        return [NUMBER]
    if config.task not in CLASSIFIERS:
        return []
    known = dict.fromkeys(_names(config, old))
    names = list(config.labels) if config.labels else list(dict.fromkeys([*known, *sorted(found)]))
    if lacking := [name for name in known if name not in names]:
        raise UserError(f"labels: {lacking[0]} is missing", "the checkpoint that training continues from has it")
    if config.task == "token-classification":
        if wrong := [name for name in names if name == "O" or name.startswith(("B-", "I-"))]:
            raise UserError(f"labels: {wrong[0]} is a tag", "give entity types, without O, B- and I-")
        return ["O", *(f"{prefix}-{name}" for name in names for prefix in "BI")] if names else []
    if len(names) < 2 and config.problem_type == "single-label":
        raise UserError(f"labels: only {len(names)} in the training data", "a classifier needs two or more")
    return names


def _names(config: FinetuneConfig, labels: Sequence[str]) -> list[str]:
    """Returns what rows are labelled with. The label of a text may be called O or B-cell without being a tag."""
    return entities.types(labels) if config.task == "token-classification" else list(labels)


def _check_labels(config: FinetuneConfig, table: Table, names: Sequence[str], problems: _Problems) -> None:
    if isinstance(config.class_weights, Mapping):
        allowed = ["O", *names] if config.task == "token-classification" else names
        if wrong := [name for name in config.class_weights if name not in allowed]:
            raise UserError(f"class_weights: {wrong[0]!r} is not a label", "allowed: " + ", ".join(allowed))
    if set(chain.from_iterable(table.label_sets)) <= set(names):
        return
    # Their places in the files were not stored, so the files are read once more.
    for source in filter(None, (config.train, config.test, config.replay)):
        for where, row in _checked(config, source, _Problems()):
            if unknown := [label for label in counted_labels(row) if label not in names]:
                problems.add(f"{where}: label {unknown[0]!r} is not one of {', '.join(sorted(names))}")


def _split(
    config: FinetuneConfig,
    table: Table,
    train: Places,
    test: Places,
    replay: Places,
    sampled: Places,
    labels: list[str],
    old: Old,
    before: Parents,
) -> Data:
    held_before = table.add(old.test)
    order = random.Random(config.seed)
    train = shuffled(train, order)
    held, is_new = table.known(train, before.trained, before.held_out)
    carried, held_before = held_before, np.append(held_before, train[held])
    if held.any():
        logger.info("%d rows stay held out, as they were before", held.sum())
    if config.test:
        # Not by the run's seed: runs with other seeds are measured on the same rows, and may be averaged (soup).
        given = shuffled(test, random.Random(_TEST_ORDER))
        test = given[np.logical_or(*table.known(given, before.trained, before.held_out))]
        if len(test) < len(given):
            logger.warning(
                "test: %d of %d rows are left out: the model that this run continues from, or its teacher, "
                "was trained on them",
                len(given) - len(test),
                len(given),
            )
    else:
        assert config.test_size is not None
        drawn = table.stratified(train[is_new], config.test_size)[1]
        test = np.concatenate([train[held], drawn])
        train = train[np.isin(train, test, invert=True)]
    test = test[: config.max_test_rows]
    held_out = np.append(test, held_before)
    kept = table.apart(train, held_out)
    duplicates = len(train) - len(kept)
    kept = kept[: config.max_train_rows]
    again = int(table.among(kept, before.trained).sum())
    sampled = table.without(table.apart(sampled, held_out), kept)
    new = kept
    replay = shuffled(replay, order)
    # If a new and an old row have the same input, the new one is used.
    replay = table.without(table.apart(replay, held_out), kept)
    replay = _share(table, replay, config.replay_share or 0.0, len(kept))
    kept, validation = np.append(kept, replay), np.arange(0)
    if config.validation_size:
        kept, validation = table.stratified(kept, config.validation_size)
        validation = table.apart(validation, kept)
    if not len(kept) or not len(test) or (config.validation_size and not len(validation)):
        counts = f"{len(kept)} rows to train on, {len(test)} to test on" + (
            ", 0 to validate with" if config.validation_size else ""
        )
        hint = "of more groups, as each is on one side" if config.group_column else "data"
        if len(before.trained) and not len(test):
            counts += ": the model that it continues from, or its teacher, was trained on the others"
        raise UserError(counts, f"each needs some: give more {hint}")
    replayed = len(kept) - len(table.without(kept, replay))
    rows = table.rows.view
    # Old held-out rows stay held out; if the new data has them too, with the labels of the new data.
    test = np.append(test, table.without(carried, test))
    new = new[np.isin(new, validation, invert=True)]
    before_it = max(0, old.learned - again)
    sample = previous.sample(new, sampled, before_it, kept_rows.ROWS, config.seed)
    return Data(
        rows(kept),
        rows(test),
        rows(validation),
        labels,
        _names(config, labels),
        duplicates,
        old,
        replayed,
        rows(sample),
        learned=len(new) + before_it,
        parents=before,
    )


def _share(table: Table, replay: Places, share: float, new: int) -> Places:
    """Returns as many old rows as make up `share` beside `new` new ones, each label in proportion."""
    wanted = round(new * share / (1 - share))
    if wanted < len(replay):
        return table.stratified(replay, wanted / len(replay))[1]
    if len(replay):
        logger.info("replay: all %d old rows are used; replay_share asks for %d", len(replay), wanted)
    return replay
