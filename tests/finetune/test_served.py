"""Each task by each method: what was trained, merged and saved is what vLLM serves, and so are its smaller forms."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tuneserve import checkpoint, rows
from tuneserve.finetune import models
from tuneserve.finetune.merging import target_of
from tuneserve.finetune.tokens import encode
from tuneserve.quantize import preflight, weights
from tuneserve.v1 import checkpoint_pb2 as pb

from .conftest import RATES

pytestmark = [
    pytest.mark.train,
    pytest.mark.engine,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SEQUENCE, TOKENS, GENERATION = "sequence-classification", "token-classification", "generation"
# By architecture, so that each has its engine once.
RUNS = [
    *((SEQUENCE, "bert", method) for method in RATES),
    *((TOKENS, "bert", method) for method in RATES),
    *((GENERATION, "llama", method) for method in RATES if method != "head"),
    (SEQUENCE, "roberta", "lora"),
    (TOKENS, "roberta", "lora"),
    (SEQUENCE, "modernbert", "lora"),
    (TOKENS, "modernbert", "lora"),
    (SEQUENCE, "qwen3", "lora"),
    (TOKENS, "qwen3", "lora"),
    (GENERATION, "qwen3", "lora"),
    (SEQUENCE, "gpt2", "lora"),
    (GENERATION, "gpt2", "lora"),
]
# Of these, every form that can be served here, too.
QUANTIZED = [
    (SEQUENCE, "bert", "lora"),
    (TOKENS, "bert", "lora"),
    (GENERATION, "llama", "lora"),
    (SEQUENCE, "roberta", "lora"),
    (TOKENS, "qwen3", "lora"),
]
INPUTS = 4

ByMethod = Callable[[str, str, str], Path]


def inputs_of(directory: Path) -> list[list[int]]:
    manifest = checkpoint.load(directory)
    tokenizer = models.load_tokenizer(str(directory))
    held_out = rows.read(directory / checkpoint.TEST_SPLIT)[:INPUTS]
    return [row["input_ids"][:30] for row in encode(tokenizer, target_of(manifest), held_out)]


def expected(directory: Path) -> list[Any]:
    """What transformers answers, in float32: logits, or log probabilities of the tokens."""
    import torch

    manifest = checkpoint.load(directory)
    task = checkpoint.TASK_NAMES[manifest.task]
    model = models.auto_class(task).from_pretrained(directory, dtype=torch.float32).eval()
    answers = []
    for ids in inputs_of(directory):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        if task == GENERATION:
            logits = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        answers.append(logits.tolist())
    return answers


def served(jobs: list[dict[str, Any]]) -> list[list[Any]]:
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("serve.py")],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def apart(ours: list[Any], theirs: list[Any]) -> float:
    """The root mean square difference of two models' answers, as a share of their spread."""
    import torch

    first, second = (torch.cat([torch.tensor(one).flatten() for one in each]) for each in (ours, theirs))
    return float((first - second).square().mean().sqrt() / first.std())


def smaller(directory: Path, folder: Path) -> dict[str, Path]:
    """Every form that a scheme of this platform makes of a checkpoint, by the scheme's name."""
    manifest = checkpoint.load(directory)
    made = {}
    for recipe in preflight.served(manifest, directory, preflight.this_platform()):
        made[recipe.scheme.name] = target = folder / recipe.scheme.name
        shutil.copytree(directory, target, ignore=shutil.ignore_patterns("tuneserve.json", "*.safetensors"))
        weights.write(directory, target, manifest, recipe)
        result = pb.Checkpoint()
        result.CopyFrom(manifest)
        result.quantization = recipe.scheme.name
        checkpoint.seal(target, result)
    return made


@pytest.fixture(scope="module")
def forms(by_method: ByMethod, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """All that is to be served: (task, kind of model, method) and, of some, (task, kind, method, scheme)."""
    made: dict[tuple[str, ...], Path] = {one: by_method(*one) for one in RUNS}
    for one in QUANTIZED:
        for scheme, directory in smaller(made[one], tmp_path_factory.mktemp("forms")).items():
            made[*one, scheme] = directory
    return made


@pytest.fixture(scope="module")
def answers(forms: dict[tuple[str, ...], Path]) -> dict[tuple[str, ...], list[Any]]:
    """What vLLM says to the inputs of each."""
    jobs = [
        {
            "directory": str(directory),
            # Its embeddings learned too: vLLM would not give them to the head that shares them.
            "engine": "-".join(one if len(one) > 3 or one == (GENERATION, "llama", "full") else one[:2]),
            "dtype": "bfloat16" if len(one) > 3 else "float32",
            "inputs": inputs_of(directory),
        }
        for one, directory in forms.items()
    ]
    return dict(zip(forms, served(jobs), strict=True))


def test_each_task_by_each_method(forms, answers) -> None:
    found = {one: apart(expected(forms[one]), answers[one]) for one in RUNS}
    print(found)
    assert {one: difference for one, difference in found.items() if not difference < 1e-4} == {}
    # Not the same weights again and again.
    for first, second in pairwise(one for one in RUNS if one[:2] == (SEQUENCE, "bert")):
        assert apart(answers[first], answers[second]) > 1e-3


def test_each_smaller_form(forms, answers) -> None:
    """Not far from what it was made of, and not the same."""
    found = {one: apart(expected(forms[one[:3]]), answers[one]) for one in forms if len(one) > 3}
    print(found)
    assert {one[3] for one in found} >= {"w8a8", "nf4", "int8"}
    for one in found:
        smaller, whole = (checkpoint.size_of(checkpoint.read_manifest(forms[name])) for name in (one, one[:3]))
        assert smaller < whole, one
    assert {one: share for one, share in found.items() if not 1e-5 < share < (0.2 if "8" in one[3] else 0.7)} == {}
