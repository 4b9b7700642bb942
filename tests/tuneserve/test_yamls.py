import pytest
import yaml

from tuneserve import yamls
from tuneserve.errors import UserError
from tuneserve.finetune import config


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "a: 1\n'a': 2",
        "x: {b: 1, c: 2, b: 1}",
        "- {1: a, 1.0: b}",
        "{1: a, '1': b}",
        "{yes: a, true: b}",
        "a: &x {b: 1}\na: *x",
    ],
)
def test_a_duplicate_key_is_refused(text):
    with pytest.raises(yaml.MarkedYAMLError, match="is a duplicate key"):
        yamls.parse(text)


def test_what_is_no_duplicate_is_read_as_yaml_has_it():
    text = "base: &base {a: 1, b: 2}\nof: {<<: *base, b: 3}\nlist: [{a: 1}, {a: 1}]\n1: one\n'2': two"
    assert yamls.parse(text) == yaml.safe_load(text)
    assert yamls.parse(text)["of"] == {"a": 1, "b": 3}
    with pytest.raises(yaml.YAMLError, match="unhashable key"):
        yamls.parse("{[a]: 1}")


@pytest.mark.parametrize("text", ["a: 2024-13-45", f"a: {'9' * 5000}", "a: !!int x", f"a: {'[' * 5000}"])
def test_what_the_library_itself_fails_on_is_an_error_of_yaml(text):
    with pytest.raises(yaml.YAMLError, match=r"can't be read|nested too deeply"):
        yamls.parse(text)


def test_a_training_file_with_a_duplicate_key_is_refused(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("epochs: 3\noutput: out\nepochs: 30\n")
    with pytest.raises(UserError, match=r"train\.yaml: not YAML: 'epochs' is a duplicate key .* line 3"):
        config.load(file)
