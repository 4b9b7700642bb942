"""Each task by each method: what was trained, merged and saved is what vLLM serves, and so are its smaller forms."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import encoders, rows
from tuneserve.checkpoint.tasks import auto_class
from tuneserve.finetune.data.tokens import encode
from tuneserve.finetune.export.merging import target_of
from tuneserve.finetune.model import base_models
from tuneserve.quantize import preflight, weights
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine import hardware
from tuneserve.v1 import checkpoint_pb2 as pb

from .. import tiny
from .conftest import WORDS, write_jsonl

pytestmark = [
    pytest.mark.train,
    pytest.mark.engine,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SEQUENCE, TOKENS, GENERATION, SEARCH = "sequence-classification", "token-classification", "generation", "embedding"
PREFERENCE = "preference"
# What changes each kind of weights enough to be seen.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 2e-3, "lora_rank": 16, "lora_alpha": 32},
    "dora": {"learning_rate": 2e-3},
    "rslora": {"learning_rate": 1e-3},
    "adalora": {"learning_rate": 2e-2},
    "qlora": {"learning_rate": 4e-3},
    "ia3": {"learning_rate": 5e-2},
    "full": {"learning_rate": 1e-3},
    "last-layer": {"method": "full", "learning_rate": 1e-3, "last_layers": 1},
    "head": {"method": "full", "learning_rate": 2e-2, "last_layers": 0},
}
# By architecture, so that each has its engine once.
RUNS = [
    *((SEQUENCE, "bert", method) for method in METHODS),
    *((TOKENS, "bert", method) for method in METHODS),
    (SEARCH, "bert", "lora"),
    (SEARCH, "llama", "lora"),
    *((GENERATION, "llama", method) for method in METHODS if method != "head"),
    (PREFERENCE, "llama", "lora"),
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
# Of some of these the forms of these schemes, too: each needs an engine of its own.
QUANTIZED: dict[tuple[str, str, str], list[str]] = {
    (SEQUENCE, "bert", "lora"): ["w8a8", "w4a16"],
    (TOKENS, "bert", "lora"): ["w8a8"],
    (SEARCH, "bert", "lora"): ["w8a8"],
    (GENERATION, "llama", "lora"): ["w8a8", "w4a16", "int8"],
    (SEQUENCE, "roberta", "lora"): ["nf4"],
}
POOLING = {"bert": "mean", "llama": "last-token"}
INPUTS = 4

ByMethod = Callable[[str, str, str, Path], Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, encoder: Path, chat: Path) -> Callable[[str], Path]:
    """base(kind) is a tiny model that vLLM can serve, too: its attention on CPUs wants heads of 32 and more."""
    made = {"llama": chat}

    def make(kind: str) -> Path:
        import transformers

        if kind not in made:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                encoder if kind.endswith("bert") or "roberta" in kind else chat
            )
            directory = tmp_path_factory.mktemp("models") / f"tiny-{kind}"
            model = tiny.model(
                "AutoModelForCausalLM" if kind in ("qwen3", "gpt2") else "AutoModel",
                kind,
                vocab_size=len(tokenizer),
                hidden_size=64,
                max_position_embeddings=128,
                pad_token_id=tokenizer.pad_token_id or 0,
                bos_token_id=0,
                eos_token_id=1,
                **({} if kind == "gpt2" else {"num_key_value_heads": 2, "head_dim": 32}),
            )
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            made[kind] = directory
        return made[kind]

    return make


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 sentences with a person and a place."""
    rows: list[dict[str, object]] = []
    for number in range(40):
        person, place = ("anna", "john")[number % 2], ("berlin", "paris")[number // 2 % 2]
        filler = WORDS[number % 17 : number % 17 + number % 5]
        rows.append(
            {
                "tokens": [*filler, person, "lives", "in", place],
                "tags": [*["O"] * len(filler), "B-PER", "O", "O", "B-LOC"],
            }
        )
    return write_jsonl(tmp_path_factory.mktemp("data") / "people.jsonl", rows)


@pytest.fixture(scope="module")
def liked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs of answers, of which the same one is better."""
    rows: list[dict[str, object]] = [
        {"prompt": [{"role": "user", "content": f"say {n}"}], "chosen": "yes", "rejected": "no"} for n in range(40)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "liked.jsonl", rows)


@pytest.fixture(scope="module")
def by_method(
    run: Callable[..., Path],
    base: Callable[[str], Path],
    reviews: Path,
    people: Path,
    talk: Path,
    pairs: Path,
    liked: Path,
) -> ByMethod:
    """by_method(task, kind, method, folder) trains a little, and returns the finished checkpoint, `folder / "out"`."""
    data = {SEQUENCE: reviews, TOKENS: people, GENERATION: talk, SEARCH: pairs, PREFERENCE: liked}

    def make(task: str, kind: str, method: str, folder: Path) -> Path:
        return run(
            folder,
            task=task,
            base_model=str(base(kind)),
            train=str(data[task]),
            test_size=0.2,
            epochs=3,
            batch_size=8,
            **({"pooling": POOLING[kind]} if task == SEARCH else {}),
            **{"method": method, **METHODS[method]},
        )

    return make


def inputs_of(directory: Path) -> list[list[int]]:
    manifest = checkpoint.load(directory)
    tokenizer = base_models.load_tokenizer(str(directory))
    held_out = rows.read(directory / checkpoint.TEST_SPLIT)[:INPUTS]
    return [row["input_ids"][:30] for row in encode(tokenizer, target_of(manifest), held_out)]


def expected(directory: Path) -> list[Any]:
    """What transformers answers, in float32: logits, vectors, or log probabilities of the tokens."""
    import torch

    manifest = checkpoint.load(directory)
    model = auto_class(manifest.task).from_pretrained(directory, dtype=torch.float32).eval()
    answers = []
    for ids in inputs_of(directory):
        with torch.inference_mode():
            [logits] = model(input_ids=torch.tensor([ids]))[0]
        if manifest.task == pb.TASK_EMBEDDING:
            logits = encoders.pooled(logits[None], torch.ones(1, len(ids), dtype=torch.int64), manifest.pooling)
        if manifest.task == pb.TASK_GENERATION:
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
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def apart(ours: list[Any], theirs: list[Any]) -> float:
    """The root mean square difference of two models' answers, as a share of their spread."""
    import torch

    first, second = (torch.cat([torch.tensor(one).flatten() for one in each]) for each in (ours, theirs))
    return float((first - second).square().mean().sqrt() / first.std())


def make_smaller(directory: Path, schemes: list[str], folder: Path) -> None:
    """What schemes make of a checkpoint; those that this processor has no kernels for are left out."""
    manifest = checkpoint.load(directory)
    for recipe in preflight.served(manifest, directory, preflight.this_platform()):
        if (scheme := recipe.scheme.name) in schemes:
            shutil.copytree(
                directory, folder / scheme, ignore=shutil.ignore_patterns("tuneserve.json", "*.safetensors")
            )
            weights.write(directory, folder / scheme, manifest, recipe)
            result = pb.Checkpoint()
            result.CopyFrom(manifest)
            result.quantization = scheme
            checkpoint.seal(folder / scheme, result)


@pytest.fixture(scope="module")
def forms(by_method: ByMethod, kept: Callable[..., Path]) -> dict[tuple[str, ...], Path]:
    """All that is to be served: (task, kind of model, method) and, of some, (task, kind, method, scheme)."""

    def make(directory: Path) -> None:
        for one in RUNS:
            (folder := directory / ".".join(one)).mkdir()
            trained = by_method(*one, folder)
            make_smaller(trained, QUANTIZED.get(one, []), folder)

    sources = [Path(__file__).read_bytes(), Path(__file__).with_name("conftest.py").read_bytes()]
    root = kept("served", sources, make)
    made: dict[tuple[str, ...], Path] = {one: root / ".".join(one) / "out" for one in RUNS}
    for one, schemes in QUANTIZED.items():
        for scheme in schemes:
            if (directory := root / ".".join(one) / scheme).exists():
                made[*one, scheme] = directory
    return made


def _dtype(directory: Path) -> str:
    return hardware.detect(ModelConfig(path=directory), checkpoint.load(directory)).dtype


@pytest.fixture(scope="module")
def answers(forms: dict[tuple[str, ...], Path]) -> dict[tuple[str, ...], list[Any]]:
    """What vLLM says to the inputs of each."""
    jobs = [
        {
            "directory": str(directory),
            # Its embeddings learned too: vLLM would not give them to the head that shares them.
            "engine": "-".join(one if len(one) > 3 or one == (GENERATION, "llama", "full") else one[:2]),
            # Smaller forms as the server would serve them here; the others exactly.
            "dtype": _dtype(directory) if len(one) > 3 else "float32",
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
    assert "w8a8" in {one[3] for one in found}
    for one in found:
        small, whole = (checkpoint.size_of(checkpoint.read_manifest(forms[name])) for name in (one, one[:3]))
        assert small < whole, one
    assert {one: share for one, share in found.items() if not 1e-5 < share < (0.2 if "8" in one[3] else 0.7)} == {}


def test_four_bits_in_float32(forms, answers) -> None:
    """As CPUs without native bf16 compute."""
    one = (SEQUENCE, "roberta", "lora", "nf4")
    directory = forms[one]
    job = {"directory": str(directory), "engine": "nf4", "dtype": "float32", "inputs": inputs_of(directory)}
    [found] = served([job])
    assert apart(found, answers[one]) < 0.1
