"""A classifier in ONNX Runtime: texts in, the best label of each out. Knows no server."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BATCH = 64  # texts that are run at once


class Answer(NamedTuple):
    """Of one text."""

    label: str
    score: float  # its probability
    tokens: int


class Classifier:
    """The model of a checkpoint in the form of an .onnx file."""

    def __init__(self, checkpoint: Path, model: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        # Threads that spin would take the cores from the server's other processes, which need them at the same time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self.session.get_inputs()]
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self.labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.tokenizer.enable_padding(pad_id=config.get("pad_token_id") or 0)
        self.tokenizer.enable_truncation(min(512, config["max_position_embeddings"]))

    def classify(self, texts: list[str]) -> list[Answer]:
        """Texts of like lengths run together, so that little is padded."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            found |= zip(part, self._run([texts[index] for index in part]), strict=True)
        return [found[index] for index in range(len(texts))]

    def _run(self, texts: list[str]) -> list[Answer]:
        encoded = self.tokenizer.encode_batch(texts)
        tensors = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
            "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
        }
        (logits,) = self.session.run(["logits"], {name: tensors[name] for name in self.inputs})
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        tokens = tensors["attention_mask"].sum(1)
        return [
            Answer(self.labels[row.argmax()], float(row.max()), int(count))
            for row, count in zip(scores, tokens, strict=True)
        ]
