"""Checkpoints that are small but whole: real tokenizers and configs, so that only the weights are missing. A
collector of spans, and fake engines for servers in processes of their own.
"""

import asyncio
import atexit
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from xdist.scheduler import LoadScopeScheduling

from tuneserve.checkpoint import encoders
from tuneserve.machine import tiers
from tuneserve.server.transport.wakeups import Loop

from . import tiny
from .kept import keep

WORDS = "the a film movie was is good bad great awful angela merkel née in hamburg tokyo 東 京 ! , . ' s ü".split()  # noqa: SIM905
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# Python runs this first in each process.
_FAKES = """
import sys
sys.path.append({root!r})
from tests.server.troubled_engine import TroubledEngine
from tuneserve.server.engine import fork_server, making

async def make(name, config, manifest):
    return TroubledEngine(len(manifest.labels), max_length=manifest.max_length)

making.engine_factory = lambda endpoint=None: make
fork_server.fork = lambda: None
"""

MakeCheckpoint = Callable[..., Path]

# Before torch: what these tests compute is too small to share between cores, and several of them run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# In tests/engine, what starts engines of its own.
_OWN_ENGINES = ("test_answers.py", "test_contract.py", "test_parallel.py", "test_tiers.py")


class _Sides(LoadScopeScheduling):
    """What runs side by side (`make test`): a file at a time, and all tests of the shared server in one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "engine" if file.startswith("tests/engine/") and not file.endswith(_OWN_ENGINES) else file


@pytest.fixture(params=[one for one in vars(tiers).values() if isinstance(one, tiers.Tier)], ids=lambda one: one.name)
def tier(request: pytest.FixtureRequest) -> tiers.Tier:
    """Each kind of machine."""
    found: tiers.Tier = request.param
    return found


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Sides(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first."""
    first = ["engine", "finetune", "quantize"]
    items.sort(key=lambda item: [item.path.relative_to(Path(__file__).parent).parts[0] != folder for folder in first])


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The server's own event loop: on asyncio's, messages that gRPC has received wait for one iteration each."""
    return {"server": Loop}


@atexit.register
def _end_quietly() -> None:
    """Pytest's summary comes last: Triton's bindings would list every object of theirs below it."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent over OTLP. Answers once `answers` is set."""

    received: list[trace_pb2.ResourceSpans] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    answers: threading.Event = field(default_factory=threading.Event)
    address: str = ""
    context: grpc.ServicerContext | None = None

    def Export(self, request, context):
        self.context = context
        self.asked.set()
        self.answers.wait(30)
        self.received.extend(request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def all_spans(self) -> list[trace_pb2.Span]:
        return [span for resource in self.received for scope in resource.scope_spans for span in scope.spans]

    def spans(self) -> dict[str, trace_pb2.Span]:
        found = self.all_spans()
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


@pytest.fixture(scope="session")
def collecting() -> Callable[[], AbstractContextManager[Collector]]:
    """Starts a collector: `with collecting() as collector`."""

    @contextmanager
    def run() -> Iterator[Collector]:
        collector = Collector()
        collector.answers.set()
        server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield collector
        collector.answers.set()
        server.stop(None).wait()

    return run


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> None:
    """Servers have fake engines."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(_FAKES.format(root=str(Path(__file__).parents[1])))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "python"), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="session")
def kept() -> Callable[..., Path]:
    return keep


def _write(
    directory: Path, config: dict[str, object], tokenizer: Tokenizer, tokenizer_config: dict[str, object]
) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    tokenizer.save(str(directory / "tokenizer.json"))
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, directory / "model.safetensors")
    return directory


def _bert_tokenizer() -> Tokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##el", "merk", "ham", "##burg", "🙂"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As sentence encoders ship it: the server must not let this cut or pad anything.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    return tokenizer


@pytest.fixture(scope="session")
def make_bert(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Makes a BERT's directory: a classifier of two labels, or with another head, as in make_bert("Model", [])."""

    def make(head: str = "ForSequenceClassification", labels: Sequence[str] = ("neg", "pos"), **config: object) -> Path:
        settings = {
            "architectures": [f"Bert{head}"],
            "model_type": "bert",
            "max_position_embeddings": 32,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "dtype": "bfloat16",
            **config,
        }
        names = ["input_ids", "token_type_ids", "attention_mask"]
        directory = _write(
            tmp_path_factory.mktemp("bert") / "checkpoint",
            settings,
            _bert_tokenizer(),
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names},
        )
        if head == "Model":
            encoders.write(directory, "mean", {"query": "who: "}, size=32, max_length=32)
        return directory

    return make


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Makes a chat model's directory, with a byte-level tokenizer, which may have more tokens, and a chat template."""

    def make(chat_template: str | None = CHAT_TEMPLATE, tokens: Sequence[str] = (), **settings: object) -> Path:
        tokenizer = tiny.byte_tokenizer(["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"])
        tokenizer.add_tokens(list(tokens))
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "max_position_embeddings": 64,
            "vocab_size": 300,
            "dtype": "bfloat16",
            **settings,
        }
        shown: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
        if chat_template:
            shown["chat_template"] = chat_template
        return _write(tmp_path_factory.mktemp("llama") / "checkpoint", config, tokenizer, shown)

    return make


@pytest.fixture
def certified(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a key, and of a certificate for this machine that it signed itself."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tmp_path / "key.pem", tmp_path / "cert.pem"
