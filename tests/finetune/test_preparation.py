"""Settings that a run can't begin with, whatever its data is."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import UserError
from tuneserve.finetune import config, preparation
from tuneserve.finetune.data import dataset

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def check(base_model: Path, reviews: Path, **more: Any) -> None:
    values = {"task": "sequence-classification", "base_model": str(base_model), "train": str(reviews), "output": "o"}
    given = config.parse(values | more, reviews.parent)
    preparation.check(given, dataset.load(given))


def test_two_passes_without_dropout_are_refused(encoder: Path, chat: Path, reviews: Path) -> None:
    with pytest.raises(UserError, match=r"rdrop_alpha: .*tiny-llama has no dropout") as caught:
        check(chat, reviews, rdrop_alpha=1)
    assert caught.value.hint == "set lora_dropout: 0.1, or leave it out"
    with pytest.raises(UserError, match="has no dropout") as caught:
        check(chat, reviews, rdrop_alpha=1, method="full")
    assert caught.value.hint == "leave it out"
    check(chat, reviews, rdrop_alpha=1, lora_dropout=0.1)
    check(encoder, reviews, rdrop_alpha=1)
