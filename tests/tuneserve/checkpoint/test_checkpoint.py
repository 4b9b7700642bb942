import json
import os

import pytest

from tuneserve import checkpoint
from tuneserve.errors import CheckpointError, UserError
from tuneserve.v1 import checkpoint_pb2 as pb

LABELS = ["neg", "pos"]


@pytest.fixture
def sealed(make_bert):
    directory = make_bert(labels=LABELS)
    manifest = checkpoint.describe(directory)
    manifest.lineage.append(checkpoint.step("base", "someone/encoder", {"a": 1}, ("numpy",)))
    checkpoint.seal(directory, manifest)
    return directory


def test_seal_and_load(sealed):
    manifest = checkpoint.load(sealed)
    assert manifest.task == pb.TASK_SEQUENCE_CLASSIFICATION
    assert list(manifest.labels) == LABELS
    assert manifest.lineage[0].config["a"] == 1
    assert {"tuneserve", "numpy"} <= manifest.lineage[0].packages.keys()
    assert {file.path for file in manifest.files} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_sealed_files_are_as_readable_as_others(sealed):
    (sealed / "model.safetensors").chmod(0o600)
    checkpoint.seal(sealed, checkpoint.read_manifest(sealed))
    assert {path.stat().st_mode & 0o777 for path in sealed.iterdir()} == {0o666 & ~_umask()}


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_plain_directories_load_with_a_warning(make_bert, caplog):
    manifest = checkpoint.load(make_bert("ForTokenClassification", ["O", "B-X"]))
    assert manifest.task == pb.TASK_TOKEN_CLASSIFICATION
    assert "not verified" in caplog.text


def test_a_cross_encoder_is_for_ranking(make_bert):
    key = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "6.2.0"}}
    manifest = checkpoint.describe(make_bert(labels=["LABEL_0"], **key))
    assert (manifest.task, manifest.problem_type) == (pb.TASK_RANKING, pb.PROBLEM_TYPE_MULTI_LABEL)
    assert list(manifest.labels) == ["LABEL_0"]
    older = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    assert checkpoint.describe(make_bert(labels=["LABEL_0"], **older)).task == pb.TASK_RANKING
    # A classifier of pairs, and one that says nothing.
    assert checkpoint.describe(make_bert(labels=["no", "yes"], **key)).task == pb.TASK_SEQUENCE_CLASSIFICATION
    assert checkpoint.describe(make_bert(labels=["LABEL_0"])).task == pb.TASK_SEQUENCE_CLASSIFICATION


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_one_flipped_byte_is_found(sealed, name):
    content = bytearray((sealed / name).read_bytes())
    content[len(content) // 2] ^= 0x20 if name.endswith("json") else 1
    (sealed / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(sealed)


def test_a_missing_file_is_found(sealed):
    (sealed / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: listed in tuneserve\.json but missing"):
        checkpoint.load(sealed)


def test_an_added_file_is_found(sealed):
    (sealed / "extra.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"extra\.safetensors: not in tuneserve\.json"):
        checkpoint.load(sealed)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "eval/old.ckpt"])
def test_pickles_are_refused(sealed, name):
    (sealed / name).parent.mkdir(exist_ok=True)
    (sealed / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="can run code"):
        checkpoint.load(sealed)


def test_code_is_refused(sealed):
    (sealed / "modeling.py").write_text("")
    with pytest.raises(CheckpointError, match="code inside a checkpoint"):
        checkpoint.load(sealed)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(sealed, name):
    config = json.loads((sealed / name).read_text()) | {"auto_map": {"AutoModel": "x.y"}}
    (sealed / name).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="auto_map"):
        checkpoint.load(sealed)


def test_links_out_of_the_directory_are_refused(sealed, tmp_path):
    (tmp_path / "secret").write_text("x")
    (sealed / "link.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="symbolic link"):
        checkpoint.load(sealed)


@pytest.mark.parametrize("name", ["config.json", "tuneserve.json", "model.safetensors"])
def test_pipes_are_refused(sealed, name):
    (sealed / name).unlink()
    os.mkfifo(sealed / name)
    with pytest.raises(CheckpointError, match=f"{name}: a pipe, socket or device"):
        checkpoint.load(sealed)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a checkpoint manifest"), ('{"nope": 1}', "not a checkpoint manifest"), ("{}", "format_version is ''")],
)
def test_bad_manifests_are_refused(sealed, text, message):
    (sealed / "tuneserve.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(sealed)


def test_a_version_is_of_what_answers(sealed):
    before = checkpoint.version_of(checkpoint.load(sealed))
    manifest = checkpoint.read_manifest(sealed)
    (sealed / checkpoint.CARD).write_text("# about it")
    checkpoint.seal(sealed, manifest)
    assert checkpoint.version_of(checkpoint.load(sealed)) == before
    manifest.temperature = 2
    assert checkpoint.version_of(manifest) != before


@pytest.mark.parametrize("value", ["0", "-1", '"NaN"', '"Infinity"'])
def test_a_temperature_that_nothing_can_be_divided_by(sealed, value):
    manifest = json.loads((sealed / "tuneserve.json").read_text()) | {"temperature": json.loads(value)}
    (sealed / "tuneserve.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="temperature is"):
        checkpoint.load(sealed)


def test_not_a_checkpoint_at_all(tmp_path, make_bert):
    with pytest.raises(CheckpointError, match="no such directory"):
        checkpoint.load(tmp_path / "nope")
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="has no task here"):
        checkpoint.load(make_bert("ForMaskedLM", []))


@pytest.mark.parametrize(
    ("head", "files", "task"),
    [
        ("Model", [], pb.TASK_EMBEDDING),
        ("LMHeadModel", [], pb.TASK_GENERATION),
        ("LMHeadModel", ["modules.json"], pb.TASK_EMBEDDING),
        ("ForSequenceClassification", ["modules.json"], pb.TASK_SEQUENCE_CLASSIFICATION),
    ],
)
def test_what_plain_directories_are_for(make_bert, head, files, task):
    directory = make_bert(head, ["a", "b"])
    for file in files:
        (directory / file).write_text("[]")
    assert checkpoint.describe(directory).task == task


def test_problem_types_and_default_labels_of_plain_directories(make_bert):
    number = checkpoint.describe(make_bert(labels=["stars"], problem_type="regression"))
    assert (number.problem_type, number.labels) == (pb.PROBLEM_TYPE_REGRESSION, ["stars"])
    # transformers leaves the two default labels out of config.json.
    unnamed = checkpoint.describe(make_bert(labels=[]))
    assert (unnamed.problem_type, unnamed.labels) == (pb.PROBLEM_TYPE_SINGLE_LABEL, ["LABEL_0", "LABEL_1"])


def test_writing_is_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"

    def fail_halfway() -> None:
        with checkpoint.writing(target) as directory:
            (directory / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    with checkpoint.writing(target) as directory:
        (directory / "whole").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_writing_refuses_and_replaces_finished_work(tmp_path):
    target = tmp_path / "out"
    with checkpoint.writing(target) as directory:
        (directory / "old").write_text("")
    with pytest.raises(UserError, match="already exists"), checkpoint.writing(target):
        pass
    with pytest.raises(RuntimeError), checkpoint.writing(target, overwrite=True):
        raise RuntimeError
    assert (target / "old").exists(), "a failed replacement leaves the old one"
    with checkpoint.writing(target, overwrite=True) as directory:
        (directory / "new").write_text("")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_version_follows_content_not_place(make_bert):
    first, second = (checkpoint.describe(make_bert(labels=LABELS)) for _ in range(2))
    third = checkpoint.describe(make_bert(labels=["a", "b"]))
    assert checkpoint.version_of(first) == checkpoint.version_of(second)
    assert checkpoint.version_of(first) != checkpoint.version_of(third)


def test_the_trained_length_of_this_release_and_of_older_ones():
    manifest = pb.Checkpoint(max_length=512)
    manifest.lineage.append(checkpoint.step("base", "org/base", {}, ()))
    assert checkpoint.trained_length(manifest) == 0
    # Older ones have in `max_length` what the base model reads.
    manifest.lineage.append(checkpoint.step("finetune", "org/base", {"max_length": 64}, ()))
    assert checkpoint.trained_length(manifest) == 64
    manifest.lineage.append(checkpoint.step("finetune", "mine", {"max_length": 32}, ()))
    manifest.lineage.append(checkpoint.step("quantize", "mine", {}, ()))
    manifest.max_length = 32
    assert checkpoint.trained_length(manifest) == 32
