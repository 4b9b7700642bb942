"""tuneserve finetune and validate: mistakes in the file are named."""

from ..conftest import refused


def test_training_config_mistakes_are_named(tmp_path):
    config = tmp_path / "train.yaml"
    assert "no such file" in refused("finetune", config).lower()
    config.write_text("task: sequence-classification\nbase_modle: x\ntrain: y.jsonl\noutput: z\n")
    assert "base_modle" in refused("finetune", config)
    assert "base_modle" in refused("validate", config)
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"], "nothing is left behind"
