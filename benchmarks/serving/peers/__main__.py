"""Our server beside what a user could run in its place, one peer after the other.

    python -m tuneserve.benchmarks.serving.peers demo/sentiment demo/chat [--peer NAME ...] [--report FILE]

Regime. As cost.py's: fixed jobs, rounds in turns, the first one warms up, client and server share the machine. Our
server is up the whole time. Each peer is started, asked for answers, measured beside ours, and stopped, so every ratio
compares two jobs of one round. CLASSIFIER: 512 texts one by one on 64 connections, and in batches of 64 on 4. CHAT: 32
prompts of 128 random tokens with 64 tokens to make, streamed. What has no server gets all at once. What computes in
int8 is also compared with our w8a8, where CHECKPOINT-w8a8 is there. All that is vLLM has the same settings; the others
have their defaults, but for what their files here say. CPU is that of all processes of a system, without the client.

A peer that gives more than one text in twenty another label, or another next token, is marked. One that does not start,
or does not do the same work, is left out, with the reason.

Prints tables; the last line of stdout is one JSON object. Nothing is promised: ends with status 0 if all peers were
measured.
"""

import itertools
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from tuneserve.benchmarks.claims import Claim
from tuneserve.benchmarks.serving import cost_report, front_end, interleave, small_model, systems
from tuneserve.benchmarks.serving.cost_report import Answers, Report, compared
from tuneserve.benchmarks.serving.interleave import Scenario
from tuneserve.benchmarks.serving.load.texts import SENTENCES
from tuneserve.benchmarks.serving.peers import infinity, llama_cpp, mlserver, onnx_runtime, transformers, vllm
from tuneserve.benchmarks.serving.peers.peer import BATCHES, STREAMS, Peer, Setting
from tuneserve.benchmarks.serving.systems import Engine, System
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.errors import StepFailed
from tuneserve.machine.runtime import preload

_INT8 = "w8a8"
# Short enough for models that take 64 tokens.
_TEXTS = [text for pair in itertools.permutations(SENTENCES, 2) if len(text := " ".join(pair)) <= 200]

CLASSIFIERS = [
    Peer("onnx-fp32", partial(onnx_runtime.start, "fp32")),
    Peer("onnx-int8", partial(onnx_runtime.start, "int8"), is_int8=True),
    Peer("vllm-serve", vllm.serve),
    Peer("transformers", transformers.start, [BATCHES]),
    Peer("vllm-in-process", vllm.in_process, [BATCHES]),
    Peer("infinity", infinity.start, counts_tokens=False),
    Peer("mlserver", mlserver.start, counts_tokens=False),
]
CHATS = [
    Peer("llama.cpp-bf16", partial(llama_cpp.start, "bf16"), [STREAMS]),
    Peer("llama.cpp-q8_0", partial(llama_cpp.start, "q8_0"), [STREAMS], is_int8=True),
    Peer("vllm-serve", vllm.serve, [STREAMS]),
    Peer("vllm-in-process", vllm.in_process, [STREAMS]),
]


def asked(setting: Setting) -> Job:
    """For a label of texts of two sentences each, or for the token that follows them."""
    if setting.pooling:
        return Job(texts=_TEXTS, batch=32, answers=True)
    tokenizer = Tokenizer.from_file(str(setting.checkpoint / "tokenizer.json"))
    return Job(prompts=[tokenizer.encode(text).ids for text in _TEXTS], max_tokens=1, answers=True)


def answers(system: System, job: Job) -> list[str]:
    """What a system answers. llama.cpp leaves pieces of some byte-level vocabularies as they are written there."""
    decoder = ByteLevel()
    return [decoder.decode([one]) for one in system.do(job).answers]


def scenarios(name: str, system: System, setting: Setting, kinds: Sequence[str]) -> list[Scenario]:
    """Jobs of some seconds each, of these kinds."""
    if setting.pooling:
        return [one for one in front_end.classification(name, system, 512) if one.name.endswith(tuple(kinds))]
    return [front_end.streams(name, system, small_model.vocabulary(setting.checkpoint), 64)]


def claims(ours: Sequence[str], peer: Peer) -> tuple[list[Claim], list[Claim]]:
    """What is compared: rates, and CPU times."""
    rates = [
        Claim(f"{name}, {kind}, to {peer.name}", f"{name}, {kind}", f"{peer.name}, {kind}")
        for name in ours
        for kind in peer.kinds
    ]
    return rates, [replace(one, name=f"CPU, {one.name}") for one in rates]


def measure(report: Report, peer: Peer, setting: Setting, ours: dict[str, System], rounds: int) -> None:
    """One peer beside ours. Raises StepFailed."""
    show = partial(click.echo, err=True)
    show(f"starting {peer.name}")
    title = f"{peer.name}, {'classification' if setting.pooling else 'generation'}"
    with peer.start(setting) as system:
        job = asked(setting)
        expected, found = answers(ours["ours"], job), answers(system, job)
        same = sum(one == other for one, other in zip(expected, found, strict=True))
        report.answers[title] = Answers(same, len(expected))
        compared = [one for name, each in ours.items() for one in scenarios(name, each, setting, peer.kinds)]
        for one in scenarios(peer.name, system, setting, peer.kinds):
            compared.append(replace(one, counts_tokens=peer.counts_tokens))
        samples = interleave.measure(compared, rounds, show)
    report.add(title, samples, *claims(list(ours), peer))


def measure_all(report: Report, peers: Sequence[Peer], setting: Setting, grpc: worker.Worker, rounds: int) -> None:
    """All peers of a checkpoint, while our server runs. The report says which ones could not be measured."""
    models = {"model": setting.checkpoint}
    if (quantized := setting.checkpoint.with_name(f"{setting.checkpoint.name}-{_INT8}")).is_dir():
        models[_INT8] = quantized
    click.echo("starting ours", err=True)
    with systems.ours(models, grpc, setting.scratch, setting.engine) as own:
        for peer in peers:
            ours = {"ours": own}
            if peer.is_int8 and _INT8 in models:
                ours[f"ours {_INT8}"] = replace(own, model=_INT8)
            try:
                measure(report, peer, setting, ours, rounds)
            except StepFailed as error:
                # The reason is in the report, and the other peers are measured.
                click.echo(f"{peer.name}: {error}\n{error.hint}", err=True)
                report.missing.append(f"{peer.name}: {' '.join(str(error).split())}")


@click.command()
@compared
@click.option(
    "--peer",
    "names",
    multiple=True,
    type=click.Choice(list(dict.fromkeys(one.name for one in CLASSIFIERS + CHATS))),
    help="A peer; can be repeated.",
)
@click.option("--report", "file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the tables here.")
def main(classifier: Path, chat: Path, names: Sequence[str], rounds: int, file: Path | None) -> None:
    """Measure peers with CLASSIFIER and CHAT beside our server. Without --peer, all of them."""
    preload()
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.peers", "peers/__main__")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        grpc, http = worker.clients(stack, scratch)
        for setting, peers in (
            (Setting(classifier, scratch, http, Engine(kv_cache_memory_bytes=1 << 28), pooling=True), CLASSIFIERS),
            (
                Setting(chat, scratch, http, Engine(max_model_len=512, kv_cache_memory_bytes=1 << 29), pooling=False),
                CHATS,
            ),
        ):
            if chosen := [one for one in peers if not names or one.name in names]:
                measure_all(result, chosen, setting, grpc, rounds)
    cost_report.conclude(result, file or False)


if __name__ == "__main__":
    main()
