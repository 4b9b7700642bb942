"""The contract between the programs: a checkpoint directory.

A Hugging Face checkpoint (safetensors, config.json, tokenizer) that plain transformers and vLLM load unchanged,
plus `tuneserve.json`, the JSON form of the message `tuneserve.v1.Checkpoint`. Reading one checks every hash and
refuses whatever could run code. Writing one happens in a temporary directory that is renamed at the end.

This module knows nothing of training, quantization or serving, and needs neither torch nor vLLM.
"""

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from tuneserve.checkpoint import adapters, encoders
from tuneserve.errors import CheckpointError, UserError
from tuneserve.machine import disk
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

MANIFEST = "tuneserve.json"
CARD = "README.md"
TEST_SPLIT = "eval/test.jsonl"
CALIBRATION_SPLIT = "eval/calibration.jsonl"
FORMAT_VERSION = "1"

# Formats that can run code when they are loaded. `.pt` and `.pth` hold pickles too.
PICKLE_SUFFIXES = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npz", ".msgpack", ".h5"}
# `training_args.bin` and similar files are not weights, but a finished checkpoint does not need them either.
CODE_SUFFIXES = {".py", ".so", ".sh"}

PROBLEM_TYPES = {
    "single-label": pb.PROBLEM_TYPE_SINGLE_LABEL,
    "multi-label": pb.PROBLEM_TYPE_MULTI_LABEL,
    "regression": pb.PROBLEM_TYPE_REGRESSION,
}
# By the names of config.json.
_PROBLEM_TYPES = {
    "multi_label_classification": pb.PROBLEM_TYPE_MULTI_LABEL,
    "regression": pb.PROBLEM_TYPE_REGRESSION,
}


def load(directory: Path, called: str = "") -> pb.Checkpoint:
    """Returns the manifest of a directory that is complete, unchanged and safe to load.

    A plain Hugging Face directory, without `tuneserve.json`, is described from its config.json, with a warning, because
    its content can't be verified. `called` is its name in the warning; its path if empty.

    Raises CheckpointError, naming the file.
    """
    refuse_unsafe(directory)
    if not (directory / MANIFEST).exists():
        logger.warning("%s has no %s: used as it is, its content is not verified", called or directory, MANIFEST)
        return describe(directory)
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    return manifest


def read_manifest(directory: Path) -> pb.Checkpoint:
    """Returns the parsed `tuneserve.json` without looking at the other files."""
    path = directory / MANIFEST
    try:
        manifest = json_format.Parse(path.read_text(encoding="utf-8"), pb.Checkpoint())
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory}: no {MANIFEST} here", "give the directory that finetune or quantize wrote"
        ) from None
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint manifest: {error}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {manifest.format_version!r}, this version reads {FORMAT_VERSION!r}"
        )
    if not 0 < temperature_of(manifest) < math.inf:
        raise CheckpointError(f"{path}: temperature is {manifest.temperature}, not a number above 0")
    return manifest


def verify_files(directory: Path, manifest: pb.Checkpoint) -> None:
    """Compares size and SHA-256 of every file with the manifest."""
    listed = {file.path for file in manifest.files}
    present = {path.relative_to(directory).as_posix() for path in _files(directory)} - {MANIFEST}
    if unlisted := sorted(present - listed):
        raise CheckpointError(f"{directory / unlisted[0]}: not in {MANIFEST}", "remove files added later")
    for file in manifest.files:
        path = directory / file.path
        if file.path not in present:
            raise CheckpointError(f"{path}: listed in {MANIFEST} but missing", "copy the whole directory again")
        if path.stat().st_size != file.size_bytes or sha256_file(path) != file.sha256:
            raise CheckpointError(
                f"{path}: content differs from the SHA-256 in {MANIFEST}",
                "the file was damaged or changed: copy the directory again, or make the checkpoint again",
            )


def refuse_unsafe(directory: Path) -> None:
    """Raises CheckpointError for files that could run code or lead out of the directory, and if it is no checkpoint."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory", "give a local checkpoint directory")
    root = directory.resolve()
    for path in directory.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise CheckpointError(f"{path}: symbolic link that leads out of the checkpoint directory")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path}: a pipe, socket or device; reading it may never end")
        if path.suffix in PICKLE_SUFFIXES:
            raise CheckpointError(
                f"{path}: pickled or unknown weights are refused, they can run code",
                "save with safetensors: model.save_pretrained(path, safe_serialization=True)",
            )
        if path.suffix in CODE_SUFFIXES:
            raise CheckpointError(f"{path}: code inside a checkpoint is refused")
    adapters.refuse(directory)
    config = _read_config(directory)
    if "auto_map" in config:
        raise CheckpointError(f"{directory / 'config.json'}: auto_map (remote code) is refused")
    tokenizer_config = directory / "tokenizer_config.json"
    if tokenizer_config.exists() and "auto_map" in _read_json(tokenizer_config):
        raise CheckpointError(f"{tokenizer_config}: auto_map (remote code) is refused")
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory}: no *.safetensors file", "only safetensors weights are loaded")


def describe(directory: Path) -> pb.Checkpoint:
    """Returns a manifest made from config.json and the other files of a Hugging Face directory."""
    config = _read_config(directory)
    architecture = (config.get("architectures") or [""])[0]
    manifest = pb.Checkpoint(
        format_version=FORMAT_VERSION,
        task=task_of(architecture, directory),
        architecture=architecture,
        max_length=_max_length(config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        quantization=_quantization_method(config),
        chat_template_sha256=_chat_template_sha256(directory),
        files=list_files(directory),
    )
    if manifest.task in (pb.TASK_SEQUENCE_CLASSIFICATION, pb.TASK_TOKEN_CLASSIFICATION):
        manifest.labels.extend(_labels(config))
    if manifest.task == pb.TASK_SEQUENCE_CLASSIFICATION and len(manifest.labels) == 1 and encoders.ranks(config):
        manifest.task, manifest.problem_type = pb.TASK_RANKING, pb.PROBLEM_TYPE_MULTI_LABEL
    if manifest.task == pb.TASK_SEQUENCE_CLASSIFICATION:
        manifest.problem_type = _PROBLEM_TYPES.get(str(config.get("problem_type")), pb.PROBLEM_TYPE_SINGLE_LABEL)
    if manifest.task == pb.TASK_EMBEDDING:
        manifest.pooling = encoders.pooling(directory)
        manifest.prompts.update(encoders.prompts(directory))
    return manifest


def task_of(architecture: str, directory: Path) -> pb.Task:
    """Returns the task of a model class. Raises CheckpointError for a class without a known task."""
    if architecture.endswith("ForSequenceClassification"):
        return pb.TASK_SEQUENCE_CLASSIFICATION
    if architecture.endswith("ForTokenClassification"):
        return pb.TASK_TOKEN_CLASSIFICATION
    # With this file of sentence-transformers, a model is an encoder of embeddings, whatever its class.
    if (directory / "modules.json").exists():
        return pb.TASK_EMBEDDING
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return pb.TASK_GENERATION
    if architecture.endswith("Model"):
        return pb.TASK_EMBEDDING
    raise CheckpointError(
        f"{directory / 'config.json'}: architecture {architecture or '(none)'} has no task here",
        "allowed: *ForSequenceClassification, *ForTokenClassification, *ForCausalLM, *LMHeadModel, *Model",
    )


@contextmanager
def writing(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside `target` that becomes `target` if the block ends without an error.

    After an error nothing is left of it, and an earlier `target` stays until the new one is complete.
    Raises UserError if `target` exists and `overwrite` is false, StepFailed if the disk is full.
    """
    if target.exists() and not overwrite:
        raise UserError(f"{target}: already exists", "choose another output, or pass --overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkdtemp: a finished checkpoint should have the permissions that the user's umask gives.
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        with disk.watched(target):
            yield temporary
        if target.exists():
            old = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(directory: Path, manifest: pb.Checkpoint) -> None:
    """Fills in the format version, the chat template's hash and the file list, and writes `tuneserve.json`.

    Files get the permissions of the user's umask: safetensors makes them private, but the server may run as another
    user.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in _files(directory):
        path.chmod(0o666 & ~umask)
    manifest.format_version = FORMAT_VERSION
    manifest.chat_template_sha256 = _chat_template_sha256(directory)
    del manifest.files[:]
    manifest.files.extend(list_files(directory))
    (directory / MANIFEST).write_text(to_json(manifest) + "\n", encoding="utf-8")


def to_json(manifest: pb.Checkpoint) -> str:
    """Returns the manifest in the form of `tuneserve.json`."""
    return json_format.MessageToJson(manifest, preserving_proto_field_name=True)


def step(name: str, source: str, config: Mapping[str, Any], distributions: tuple[str, ...]) -> pb.Step:
    """Returns a lineage entry with the time and the installed versions of `distributions`."""
    entry = pb.Step(name=name, source=source)
    entry.config.update(json.loads(json.dumps(dict(config), default=str)))
    for distribution in ("tuneserve", *distributions):
        try:
            entry.packages[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    entry.finished_at.GetCurrentTime()
    return entry


def temperature_of(manifest: pb.Checkpoint) -> float:
    """Returns the temperature: a sequence classifier's logits are divided by it before they become probabilities."""
    return manifest.temperature if manifest.HasField("temperature") else 1.0


def trained_length(manifest: pb.Checkpoint) -> int:
    """Returns the maximum tokens of a row in a checkpoint's training; 0 if tuneserve did not train it."""
    trained = [json_format.MessageToDict(step.config) for step in manifest.lineage if step.name == "finetune"]
    if not trained:
        return 0
    # An older release put the base model's length into the manifest, and the trained length only into the step.
    return min(int(trained[-1].get("max_length", manifest.max_length)), manifest.max_length)


def version_of(manifest: pb.Checkpoint) -> str:
    """Returns 12 hex digits, equal for checkpoints with the same answers; directory name and model card don't count."""
    lines = sorted(f"{file.sha256} {file.path}" for file in manifest.files if file.path != CARD)
    # The only part of the manifest that answers depend on.
    if manifest.HasField("temperature"):
        lines.append(f"temperature {manifest.temperature}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def size_of(manifest: pb.Checkpoint) -> int:
    """Returns the bytes of the weight files."""
    return sum(file.size_bytes for file in manifest.files if file.path.endswith(".safetensors"))


def list_files(directory: Path) -> list[pb.File]:
    """Returns path, size and SHA-256 of every file but the manifest, sorted by path."""
    return [
        pb.File(
            path=path.relative_to(directory).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=sha256_file(path),
        )
        for path in _files(directory)
        if path.name != MANIFEST
    ]


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _read_config(directory: Path) -> dict[str, Any]:
    return _read_json(directory / "config.json")


def _labels(config: Mapping[str, Any]) -> list[str]:
    # transformers writes no id2label if it is the default one.
    id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [id2label[key] for key in sorted(id2label, key=int)]


def _max_length(config: Mapping[str, Any]) -> int:
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        if isinstance(config.get(key), int):
            # RoBERTa's positions start after the padding index, so the first ones are never used.
            offset = config.get("pad_token_id", 1) + 1 if "roberta" in str(config.get("model_type")) else 0
            return int(config[key]) - offset
    return 0


def _quantization_method(config: Mapping[str, Any]) -> str:
    return str((config.get("quantization_config") or {}).get("quant_method", ""))


def _chat_template_sha256(directory: Path) -> str:
    template_file = directory / "chat_template.jinja"
    if template_file.exists():
        return sha256_file(template_file)
    tokenizer_config = directory / "tokenizer_config.json"
    template = _read_json(tokenizer_config).get("chat_template") if tokenizer_config.exists() else None
    return hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else ""
