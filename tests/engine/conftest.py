"""One real server with one real vLLM engine per model, for the whole run.

The encoders run in float32, so that answers can be compared closely with transformers; the chat model in what it
would be served in on this machine.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tuneserve import samples
from tuneserve.serving import Server, launched
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..image import packages

TOPICS = ["acting", "music", "plot"]
# Of one word and of several, of one token and of many.
NAMES = {
    "PER": ["Angela Merkel", "Barack Obama", "Zinédine Zidane", "Ngozi Okonjo-Iweala", "Anna"],
    "LOC": ["Berlin", "New York", "São Paulo", "Ouagadougou", "Kreuzberg", "東京"],
}
Kept = Callable[[str, Sequence[bytes], Callable[[Path], None]], Path]


@dataclass(frozen=True)
class Real:
    """The running server, stubs to it, and the directories of its models."""

    server: Server
    channel: grpc.Channel
    classification: ClassificationServiceStub
    embedding: EmbeddingServiceStub
    generation: GenerationServiceStub
    models: Any  # every call of ModelService and ModelAdminService, on the administrators' port
    directories: dict[str, Path]
    collector: Any  # of the server's spans, and of its engines'
    trouble: Path  # written to, it makes an engine's next step slow, or endless (trouble.py)
    root: Path  # what an administrator may load from; `adapter` and `other` are LoRA adapters for the chat model

    def total(self, name: str) -> float:
        """A counter's samples of all models, added up."""
        with urllib.request.urlopen(f"http://{self.server.addresses.metrics}/metrics", timeout=10) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        return sum(one.value for family in families for one in family.samples if one.name == name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The drain stops the server that the other tests here use: it goes last of them, before other folders' tests.

    Lost engines come right before it: what is loaded after them has no cache and no counts of earlier tests.
    """
    here = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted(
        (items[index] for index in here),
        key=lambda item: (item.name == "test_sigterm_drains", item.path.name == "test_crash.py"),
    )
    for index, item in zip(here, ordered, strict=True):
        items[index] = item


def command(*arguments: object) -> str:
    """Runs `tuneserve` as a user does; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", "tuneserve.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def finetuned(directory: Path, **settings: object) -> None:
    """Fine-tunes a little, through the command line, into `directory / "out"`."""
    config = directory / "train.yaml"
    config.write_text(yaml.safe_dump({"output": "out", "max_length": 64, **settings}))
    command("finetune", config)


@pytest.fixture(scope="session")
def directories(kept: Kept) -> dict[str, Path]:
    """A merged LoRA classifier, a fully trained tagger, an untrained multi-label classifier and a chat model."""
    # Fetched once, not by each.
    encoder = str(samples.sentiment_encoder())
    sentiment: dict[str, object] = {
        "task": "sequence-classification",
        "base_model": encoder,
        "train": str(samples.sentiment()),
        "max_train_rows": 1600,
        "max_test_rows": 200,
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-3,
    }
    ner: dict[str, object] = {
        "task": "token-classification",
        "method": "full",
        "base_model": "encoder",
        "train": "train.jsonl",
        "test_size": 0.2,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 5e-3,
    }
    sources = [Path(__file__).read_bytes(), samples.sentiment().read_bytes()]
    with ThreadPoolExecutor(2) as pool:
        made = {
            "ner": pool.submit(kept, "ner", sources, partial(_tagger, ner)),
            "sentiment": pool.submit(kept, "sentiment", sources, partial(finetuned, **sentiment)),
            "topics": pool.submit(kept, "topics", sources, _multi_label),
        }
        return {name: one.result() / "out" for name, one in made.items()} | {
            "chat": samples.chat_model(),
            "vectors": samples.embedding_model(),
        }


def _tagger(settings: dict[str, object], directory: Path) -> None:
    """Learns a few names by heart, among the words of film reviews: small, and sure enough of what it finds."""
    code = f"""
import torch
from transformers import AutoTokenizer, BertConfig, BertModel
tokenizer = AutoTokenizer.from_pretrained({str(samples.sentiment_encoder())!r})
torch.manual_seed(0)
config = BertConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                    intermediate_size=128, max_position_embeddings=512)
BertModel(config).save_pretrained({str(directory / "encoder")!r})
tokenizer.save_pretrained({str(directory / "encoder")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    chance = random.Random(0)
    with samples.sentiment().open(encoding="utf-8") as reviews, (directory / "train.jsonl").open("w") as file:
        for line in islice(reviews, 600):
            file.write(json.dumps(_with_names(json.loads(line)["text"].split()[:12], chance)) + "\n")
    finetuned(directory, **settings)


def _with_names(words: list[str], chance: random.Random) -> dict[str, object]:
    """One row: the words with names put in between."""
    parts = [(word, "") for word in words]
    for label, names in NAMES.items():
        if chance.random() < 0.8:
            parts.insert(chance.randint(0, len(parts)), (chance.choice(names), label))
    text, entities = "", []
    for part, label in parts:
        text += " " if text else ""
        if label:
            entities.append({"start": len(text), "end": len(text) + len(part), "label": label})
        text += part
    return {"text": text, "entities": entities}


def _multi_label(directory: Path) -> None:
    """Random weights will do: the scores are compared, not judged."""
    code = f"""
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
source, target, labels = {str(samples.sentiment_encoder())!r}, {str(directory / "out")!r}, {TOPICS!r}
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(
    source, num_labels=3, id2label=dict(enumerate(labels)), label2id={{l: i for i, l in enumerate(labels)}},
    problem_type="multi_label_classification")
torch.nn.init.normal_(model.classifier.weight, std=0.5)
model.save_pretrained(target)
AutoTokenizer.from_pretrained(source).save_pretrained(target)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def _adapters(root: Path, *names: str) -> None:
    """LoRA adapters with weights large enough to be seen."""
    code = f"""
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
for seed, name in enumerate({names!r}):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained({str(samples.chat_model())!r}, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for parameter in (parameter for key, parameter in model.named_parameters() if "lora_B" in key):
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained({str(root)!r} + "/" + name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.fixture(scope="session")
def real(
    directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, collecting: Callable[[], Any]
) -> Iterator[Real]:
    """The server. Started once, with what its image has."""
    models: dict[str, dict[str, object]] = {
        name: {"path": str(path), "dtype": "auto" if name == "chat" else "float32"}
        for name, path in directories.items()
    }
    models["chat"] |= {"max_adapters": 2, "tool_parser": "hermes"}
    # More than they were trained at: where inputs are cut is tested at what an encoder reads.
    models["sentiment"]["max_length"] = models["ner"]["max_length"] = 512
    folder = tmp_path_factory.mktemp("config")
    root = folder / "root"
    _adapters(root, "adapter", "other")
    settings = {
        "models": models,
        "admin_listen": "127.0.0.1:0",
        "models_root": str(root),
        "drain_seconds": 20,
        "watchdog_seconds": 15,
    }
    config = folder / "server.yaml"
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())
        config.write_text(yaml.safe_dump(settings | {"otlp_endpoint": f"http://{collector.address}"}))
        python = packages.python(folder / "image")
        server = stack.enter_context(launched("--config", str(config), environment=_with_plugin(folder), python=python))
        channel = stack.enter_context(grpc.insecure_channel(server.addresses.grpc))
        admin = stack.enter_context(grpc.insecure_channel(server.addresses.admin))
        yield Real(
            server,
            channel,
            ClassificationServiceStub(channel),
            EmbeddingServiceStub(channel),
            GenerationServiceStub(channel),
            SimpleNamespace(**vars(ModelServiceStub(admin)), **vars(ModelAdminServiceStub(admin))),
            directories,
            collector,
            folder / "trouble",
            root,
        )


def _with_plugin(folder: Path) -> dict[str, str]:
    """Installs trouble.py in `folder` as a plugin of vLLM's; returns the environment that it is found in."""
    about = folder / "plugin" / "trouble-1.dist-info"
    about.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("trouble.py"), about.parent)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\ntrouble = trouble:register\n")
    return os.environ | {"PYTHONPATH": str(about.parent), "TUNESERVE_TROUBLE": str(folder / "trouble")}


@pytest.fixture
def offline() -> Callable[[Path, dict[str, Any]], dict[str, Any]]:
    """Asks plain vLLM to generate, in a process of its own without this server: offline(model, job)."""

    def run(model: Path, job: dict[str, Any]) -> dict[str, Any]:
        script = Path(__file__).with_name("offline.py")
        result = subprocess.run([sys.executable, script, model], input=json.dumps(job), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])

    return run
