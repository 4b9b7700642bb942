"""Distillation for generation: the teacher answers each batch."""

from pathlib import Path

import pytest

from tuneserve.checkpoint import rows

from .conftest import Run
from .test_distillation import UNMOVED, metrics

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_who_teaches_itself_has_nothing_to_learn(run: Run, tmp_path: Path, chat: Path) -> None:
    def talk(question: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]}

    rows.write(tmp_path / "talk.jsonl", [talk("say " + "so " * n) for n in range(10)])
    common = UNMOVED | {
        "task": "generation",
        "base_model": str(chat),
        "train": "talk.jsonl",
        "gradient_accumulation": 2,
    }
    taught = metrics(run(tmp_path, output="taught", teacher=str(chat), **common))
    assert taught["train_loss"] == pytest.approx(0, abs=1e-5)
    assert taught["teacher/perplexity"] == pytest.approx(taught["perplexity"], rel=0.05)
    del common["distillation_weight"]
    plain = metrics(run(tmp_path, output="plain", **common))
    half = metrics(run(tmp_path, output="half", teacher=str(chat), **common))
    assert half["train_loss"] == pytest.approx(plain["train_loss"] / 2, rel=1e-4)
