"""The data of a run: every row of its files checked, all problems at once; then train, validation and test.

Nothing here needs torch or a tokenizer.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from tuneserve.errors import UserError
from tuneserve.finetune import canonical, continual, formats
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.continual import Old
from tuneserve.rows import Row, input_key

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 20
NUMBER = "score"  # what the one output of a regression is called


@dataclass(frozen=True)
class Data:
    """Everything a run trains and is measured on."""

    train: list[Row]
    test: list[Row]
    validation: list[Row]  # of the training rows: tells which epoch was best; empty unless asked for
    labels: list[str]  # the position is the class index; empty for generation
    duplicates: int  # training rows dropped because their input is in the test rows, these or the old ones
    old: Old = field(default_factory=Old)  # what training goes on from
    replayed: int = 0  # training rows that are old ones

    def label_distribution(self, of: Sequence[Row] | None = None) -> dict[str, float]:
        """Returns the share of each label in rows (the training rows): of texts, or of entities for tokens."""
        counts = Counter(chain.from_iterable(map(_counted_labels, self.train if of is None else of)))
        total = sum(counts.values())
        names = dict.fromkeys(_entity_type(label) for label in self.labels if label != "O")
        return {name: counts[name] / total for name in names} if total else {}

    def repeated(self) -> tuple[int, int]:
        """Returns how many training rows have the input of an earlier one, and how many of these another answer."""
        first: dict[str, Row] = {}
        again = [(row, first[key]) for row in self.train if first.setdefault(key := input_key(row), row) is not row]
        return len(again), sum(row != before for row, before in again)


def load(config: FinetuneConfig) -> Data:
    """Reads, checks and splits. The same files and settings always give the same rows in the same order.

    Raises UserError with the number of bad rows and the first of them as `file:line: reason`.
    """
    old = continual.load(config)
    problems: list[str] = []
    train = _canonical(config, config.train, problems)
    test = _canonical(config, config.test, problems) if config.test else []
    replay = _canonical(config, config.replay, problems) if config.replay else []
    # Without one good row there are no labels to speak of.
    labels = _labels(config, [row for _, row in train], old.labels) if train else []
    if labels:
        problems += _unknown_labels(chain(train, test, replay), set(labels))
    if problems:
        more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(
            f"{len(problems)} bad rows in the data, nothing was trained:\n  "
            + "\n  ".join(problems[:SHOWN_PROBLEMS])
            + more,
            "correct or remove these rows",
        )
    return _split(config, [row for _, row in train], [row for _, row in test], [row for _, row in replay], labels, old)


def _canonical(config: FinetuneConfig, source: str, problems: list[str]) -> list[tuple[str, Row]]:
    """Returns (where, row) for the good rows and adds one line to `problems` for each bad one."""
    columns = dict(config.columns or {})
    good: list[tuple[str, Row]] = []
    seen = 0
    for where, raw in formats.read(source, config.format):
        seen += 1
        if isinstance(raw, str):
            problems.append(f"{where}: {raw}")
            continue
        missing = [name for name in columns.values() if name not in raw]
        # The rows of a file have the same columns: the first row tells of a wrong mapping.
        if seen == 1 and missing:
            raise UserError(
                f"{where}: no column {missing[0]}, which `columns` names", "found: " + ", ".join(map(str, raw))
            )
        mapped = raw | {ours: raw[theirs] for ours, theirs in columns.items() if theirs in raw}
        try:
            good.append((where, canonical.row(mapped, config)))
        except canonical.BadRow as error:
            problems.append(f"{where}: {error}")
    if not seen:
        raise UserError(f"{source}: no rows")
    return good


def _labels(config: FinetuneConfig, train: Iterable[Row], old: Sequence[str]) -> list[str]:
    """Returns the class names in their order: as given, or the old ones and then the new ones, sorted.

    For tokens, O and then B- and I- of each type.
    """
    if config.task == "generation":
        return []
    if config.problem_type == "regression":
        return [NUMBER]
    found = sorted(set(chain.from_iterable(map(_counted_labels, train))))
    known = dict.fromkeys(_entity_type(label) for label in old if label != "O")
    names = list(config.labels) if config.labels else list(dict.fromkeys([*known, *found]))
    if lacking := [name for name in known if name not in names]:
        raise UserError(f"labels: {lacking[0]} is missing", "the checkpoint that training goes on from knows it")
    if config.task == "token-classification":
        if wrong := [name for name in names if name == "O" or name.startswith(("B-", "I-"))]:
            raise UserError(f"labels: {wrong[0]} is a tag", "give entity types, without O, B- and I-")
        return ["O", *(f"{prefix}-{name}" for name in names for prefix in "BI")] if names else []
    if len(names) < 2 and config.problem_type == "single-label":
        raise UserError(f"labels: only {len(names)} in the training data", "a classifier needs two or more")
    return names


def _counted_labels(row: Row) -> list[str]:
    """The labels of a row that count: its label or labels, or the type of each of its entities."""
    if "tags" in row:
        return [tag[2:] for tag in row["tags"] if tag.startswith("B-")]
    if "labels" in row:
        return list(row["labels"])
    return [row["label"]] if isinstance(row.get("label"), str) else []


def _entity_type(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _unknown_labels(placed: Iterable[tuple[str, Row]], labels: set[str]) -> Iterable[str]:
    types = {_entity_type(label) for label in labels - {"O"}} if "O" in labels else labels
    for where, row in placed:
        for label in _counted_labels(row):
            if label not in types:
                yield f"{where}: label {label!r} is not one of {', '.join(sorted(types))}"
                break


def _split(
    config: FinetuneConfig, train: list[Row], test: list[Row], replay: list[Row], labels: list[str], old: Old
) -> Data:
    order = random.Random(config.seed)
    order.shuffle(train)
    if config.test:
        order.shuffle(test)
    else:
        assert config.test_size is not None
        train, test = stratified(train, config.test_size)
    test = test[: config.max_test_rows]
    held_out = [*test, *old.test]
    kept = _without(train, held_out)
    duplicates = len(train) - len(kept)
    kept = kept[: config.max_train_rows]
    order.shuffle(replay)
    # Where new and old rows ask the same, the new ones know better.
    replay = _share(_without(replay, [*held_out, *kept]), config.replay_share, len(kept))
    kept += replay
    validation: list[Row] = []
    if config.validation_size:
        kept, validation = stratified(kept, config.validation_size)
        validation = _without(validation, kept)
    if not kept or not test or (config.validation_size and not validation):
        counts = f"{len(kept)} rows to train on, {len(test)} to test on" + (
            ", 0 to validate with" if config.validation_size else ""
        )
        raise UserError(counts, "each needs some: give more data")
    replayed = len(kept) - len(_without(kept, replay))
    return Data(kept, test, validation, labels, duplicates, old, replayed)


def _share(replay: list[Row], share: float, new: int) -> list[Row]:
    """Returns as many of the old rows as make up their share beside so many new ones, each label in proportion."""
    wanted = round(new * share / (1 - share))
    if wanted < len(replay):
        return stratified(replay, wanted / len(replay))[1]
    if replay:
        logger.info("replay: all %d old rows, of the %d that replay_share is", len(replay), wanted)
    return replay


def _without(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Returns the rows whose input is in none of the others."""
    known = {input_key(row) for row in others}
    return [row for row in rows if input_key(row) not in known]


def stratified(shuffled: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Splits so that each label has about its share on both sides, however rare.

    Rows in order of their labels, then every n-th of them, is a stratified sample of exactly the wanted size.
    """
    order = sorted(range(len(shuffled)), key=lambda index: _stratum(shuffled[index]))
    wanted = round(len(shuffled) * share)
    chosen = {order[int((index + 0.5) * len(order) / wanted)] for index in range(wanted)}
    train = [row for index, row in enumerate(shuffled) if index not in chosen]
    test = [row for index, row in enumerate(shuffled) if index in chosen]
    return train, test


def _stratum(row: Row) -> tuple[float, list[str]]:
    label = row.get("label")
    return (label if isinstance(label, float) else 0.0), sorted(set(_counted_labels(row)))
