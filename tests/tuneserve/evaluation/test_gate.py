import json
import math
from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import UserError
from tuneserve.evaluation import gate
from tuneserve.evaluation.gate import FEATURES, features
from tuneserve.v1 import answer_pb2 as pb

JUDGE = {"weights": {"overlap": 4.0}, "bias": -2.0, "threshold": 0.5}
GATE = {"model": "e5@1", "ranking_model": "", "answerable": JUDGE, "reply": JUDGE}


def passage(text: str, dense: float = 0.5, keyword: float = 0.0, **fields: Any) -> pb.Passage:
    return pb.Passage(text=text, dense_score=dense, keyword_score=keyword, **fields)


def test_what_a_search_tells() -> None:
    found = features("Who pays the deposit?", [passage("A cat.", 0.4), passage("The tenant pays.", 0.8, 3.0)])
    assert found["dense"] == pytest.approx(0.8)
    assert found["dense_gap"] == pytest.approx(0.2)
    assert found["keyword"] == pytest.approx(math.log(4))
    assert found["keyword_gap"] == pytest.approx(math.log(4) / 2)
    assert found["overlap"] == 0 < found["overlap_of_three"] < 1
    assert found["length"] == pytest.approx(math.log(5))
    assert found.keys() == set(FEATURES) - {"ranking", "ranking_gap"}


def test_what_a_ranking_model_tells_and_titles() -> None:
    ranked = [passage("", title="Who pays?", ranking_score=1.0), passage("no", ranking_score=0.5)]
    found = features("who pays", ranked)
    assert found.keys() == set(FEATURES)
    assert found["overlap"] == 1
    assert 10 < found["ranking"] == 2 * found["ranking_gap"] < 20


def test_only_the_first_passages_count() -> None:
    some = [passage("a")] * gate.DEPTH
    assert features("b", [*some, passage("b", 1.0, 9.0)]) == features("b", some)
    assert features("", [passage("")])["overlap"] == 0, "no words"


def test_probabilities() -> None:
    judge = gate.Judge(**JUDGE)
    assert judge.probability({"overlap": 0.5}) == 0.5
    assert judge.probability({"overlap": 1.0}) == pytest.approx(1 / (1 + math.exp(-2)))
    assert gate.Judge(weights={"length": 1e9}, bias=0.0, threshold=0.5).probability({"length": -9.0}) < 1e-9


def test_a_file_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_text(json.dumps(GATE | {"answerable": JUDGE | {"bias": 1e-07}}))
    assert gate.load(file).answerable.bias == 1e-07
    for content, said in [
        (json.dumps(GATE | {"reply": JUDGE | {"threshold": 2}}), "reply.threshold"),
        (json.dumps(GATE | {"reply": JUDGE | {"weights": {"cosine": 1.0}}}), "unknown feature 'cosine'"),
        (json.dumps({"model": "a"}), "ranking_model is missing"),
        ("{", "gate.json: not JSON"),
    ]:
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            gate.load(file)
    with pytest.raises(UserError, match=r"none\.json: can't be read: No such file"):
        gate.load(tmp_path / "none.json")
