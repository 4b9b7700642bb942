import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint.rows import input_key
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.data import dataset


def settings(path: Path, task: str = "sequence-classification", **more: Any) -> config.FinetuneConfig:
    return config.parse({"task": task, "base_model": "m", "train": path.name, "output": "o", **more}, path.parent)


def jsonl(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def labelled(count: int) -> list[dict[str, str]]:
    # 10 % are rare.
    return [{"text": f"text {n}", "label": "rare" if n % 10 == 0 else "common"} for n in range(count)]


def test_all_bad_rows_are_named_at_once(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "d.jsonl",
        {"text": "fine", "label": "a"},
        {"text": " ", "label": "a"},
        {"text": 5, "label": "a"},
        {"text": "no label"},
        {"text": "other", "label": "c"},
        {"text": "yes and no", "label": True},
        {"text": "half \ud83d", "label": "b"},
        {"text": "fine too", "label": 2},
    )
    with pytest.raises(UserError) as caught:
        dataset.load(settings(path, labels=["a", "b", "2"]))
    assert str(caught.value).split("\n  ") == [
        "6 bad rows in the data, nothing was trained:",
        "d.jsonl:2: text is blank",
        "d.jsonl:3: text is not text but int",
        "d.jsonl:4: no label; found text (map with `columns`)",
        "d.jsonl:6: label is not text but bool",
        "d.jsonl:7: text is not valid Unicode (half of a surrogate pair)",
        "d.jsonl:5: label 'c' is not one of 2, a, b",
    ]


def test_bad_rows_are_told_before_what_the_others_lack(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"text": "fine", "label": "a"}, {"text": " ", "label": "b"})
    with pytest.raises(UserError, match="1 bad rows in the data") as caught:
        dataset.load(settings(path))
    assert "d.jsonl:2: text is blank" in str(caught.value)
    path = jsonl(tmp_path / "d.jsonl", {"text": "fine", "label": "a"}, {"text": "too", "label": "a"})
    with pytest.raises(UserError, match="only 1 in the training data"):
        dataset.load(settings(path))


def test_only_the_first_problems_are_shown(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *[{"text": "", "label": "a"}] * 30)
    with pytest.raises(UserError, match="30 bad rows") as caught:
        dataset.load(settings(path, labels=["a", "b"]))
    assert str(caught.value).endswith("d.jsonl:20: text is blank\n  and 10 more")


def test_labels_that_training_rows_lack_are_named_where_they_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(20))
    jsonl(tmp_path / "t.jsonl", *labelled(3), {"text": "", "label": "rare"}, {"text": "x", "label": "odd"})
    with pytest.raises(UserError) as caught:
        dataset.load(settings(path, test="t.jsonl"))
    assert str(caught.value).split("\n  ")[1:] == [
        "t.jsonl:4: text is blank",
        "t.jsonl:5: label 'odd' is not one of common, rare",
    ]


def test_columns_are_mapped_and_a_wrong_mapping_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("review,stars\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)))
    found = dataset.load(settings(path, columns={"text": "review", "label": "stars"}))
    assert found.labels == ["0", "1"]
    assert set(found.train[0]) == {"text", "label"}
    with pytest.raises(UserError, match=r"d\.csv:2: no column sentence") as caught:
        dataset.load(settings(path, columns={"text": "sentence"}))
    assert caught.value.hint == "found: review, stars"


def test_the_split_is_stratified_seeded_and_of_the_wanted_size(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(200))
    found = dataset.load(settings(path, test_size=0.2))
    assert (len(found.train), len(found.test)) == (160, 40)
    assert Counter(row["label"] for row in found.test) == {"common": 36, "rare": 4}
    assert list(dataset.load(settings(path, test_size=0.2)).train) == list(found.train)
    assert list(dataset.load(settings(path, test_size=0.2, seed=1)).train) != list(found.train)
    assert found.label_distribution() == {"common": 0.9, "rare": 0.1}


def test_inputs_held_out_are_never_trained_on(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(50), *labelled(50))
    found = dataset.load(settings(path))
    assert found.duplicates > 0
    assert len(found.train) + len(found.test) + found.duplicates == 100
    assert not {row["text"] for row in found.train} & {row["text"] for row in found.test}


def test_own_test_file_and_row_limits(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(50))
    jsonl(tmp_path / "t.jsonl", *labelled(20))
    found = dataset.load(settings(path, test="t.jsonl", max_train_rows=10, max_test_rows=5))
    assert (len(found.train), len(found.test)) == (10, 5)
    other = dataset.load(settings(path, test="t.jsonl", max_train_rows=10, max_test_rows=5, seed=1))
    assert list(other.test) == list(found.test), "runs with other seeds are measured on the same rows"
    assert list(other.train) != list(found.train)


def test_label_order_is_as_given_or_sorted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(30))
    assert dataset.load(settings(path)).labels == ["common", "rare"]
    assert dataset.load(settings(path, labels=["rare", "common"])).labels == ["rare", "common"]


def test_too_little_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        dataset.load(settings(jsonl(tmp_path / "d.jsonl")))
    with pytest.raises(UserError, match="only 1 in the training data"):
        dataset.load(settings(jsonl(tmp_path / "d.jsonl", *[{"text": "x", "label": "a"}] * 20)))
    with pytest.raises(UserError, match="1 rows to train on, 0 to test on"):
        dataset.load(settings(jsonl(tmp_path / "d.jsonl", {"text": "x", "label": "a"}), labels=["a", "b"]))


def test_numbers_to_learn(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *({"text": f"text {n}", "label": str(n / 10)} for n in range(20)))
    found = dataset.load(settings(path, problem_type="regression", test_size=0.2))
    assert found.labels == ["score"]
    # Spread over the whole range, as the training rows are.
    assert max(row["label"] for row in found.test) > 1 > min(row["label"] for row in found.test)
    with pytest.raises(UserError, match="label is 'many', not a number"):
        dataset.load(settings(jsonl(path, {"text": "x", "label": "many"}), problem_type="regression"))


def test_validation_rows_are_of_the_training_rows_alone(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(200), *labelled(20))
    found = dataset.load(settings(path, test_size=0.2, validation_size=0.25))
    inputs = [{input_key(row) for row in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, inputs)) == len(set.union(*inputs))
    assert len(found.validation) == pytest.approx(0.25 * (len(found.train) + len(found.validation)), abs=8)
    assert Counter(row["label"] for row in found.validation)["rare"] >= 2


def test_rows_that_repeat_and_contradict_each_other_are_counted(tmp_path: Path) -> None:
    values = [{"text": "same", "label": "a"}] * 3 + [{"text": "same", "label": "b"}, {"text": "other", "label": "b"}]
    test = jsonl(tmp_path / "t.jsonl", {"text": "held out", "label": "a"})
    found = dataset.load(settings(jsonl(tmp_path / "d.jsonl", *values), test=test.name))
    repeated, contradictory = found.repeated()
    assert repeated == 3
    # Which of them comes first is the shuffle's choice.
    assert contradictory in (1, 3)


def test_weights_of_labels_that_there_are_not(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", *labelled(30))
    with pytest.raises(UserError, match="class_weights: 'raer' is not a label") as caught:
        dataset.load(settings(path, class_weights={"rare": 2, "raer": 5}))
    assert caught.value.hint == "allowed: common, rare"
    dataset.load(settings(path, class_weights={"rare": 2}))
    words = jsonl(tmp_path / "w.jsonl", *[{"tokens": ["in", f"Rome{n}"], "tags": ["O", "B-LOC"]} for n in range(20)])
    with pytest.raises(UserError, match="class_weights: 'PER' is not a label") as caught:
        dataset.load(settings(words, "token-classification", class_weights={"PER": 2}))
    assert caught.value.hint == "allowed: O, LOC"
    dataset.load(settings(words, "token-classification", class_weights={"LOC": 2, "O": 0.5}))


def test_labels_of_texts_that_look_like_tags(tmp_path: Path) -> None:
    names = ("O", "B-cell", "T-cell", "cell")
    path = jsonl(tmp_path / "d.jsonl", *[{"text": f"text {n}", "label": names[n % 4]} for n in range(80)])
    found = dataset.load(settings(path))
    assert found.labels == ["B-cell", "O", "T-cell", "cell"]
    assert found.label_distribution() == {name: pytest.approx(0.25, abs=0.02) for name in names}
    with pytest.raises(UserError, match=r"label 'B-cell' is not one of O, T-cell, cell"):
        dataset.load(settings(path, labels=["O", "T-cell", "cell"]))
