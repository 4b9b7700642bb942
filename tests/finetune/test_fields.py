"""What the values of a training file may be."""

from pathlib import Path

import pytest

from tuneserve.errors import UserError
from tuneserve.finetune import config

from .test_config import parse


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "task: generation\nbase_model: m\ntrain: d.csv\noutput: o\nlearning_rate: 2e-4\n"
    )
    assert config.load(tmp_path / "run.yaml").learning_rate == 2e-4


def test_a_chat_template_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    found = parse(tmp_path, task="generation", chat_template="chat.jinja")
    assert found == parse(tmp_path, task="generation", chat_template=(tmp_path / "chat.jinja").read_text())
    # Long: the lineage says which it is.
    assert found.public()["chat_template"].startswith("SHA-256 ")
    with pytest.raises(UserError, match=r"chat_template: .*other\.jinja: No such file"):
        parse(tmp_path, task="generation", chat_template="other.jinja")
