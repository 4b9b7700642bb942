"""Our server beside what a user could run in its place, one peer after the other.

    python -m tuneserve.benchmarks.serving.peers demo/sentiment [--peer NAME ...] [--rounds 15] [--report FILE]

Regime. As cost.py's: fixed jobs, rounds in turns, the first one warms up, client and server share the machine. Our
server is up the whole time. Each peer is started, asked for labels, measured beside ours, and stopped, so every ratio
compares two jobs of one round. 512 texts one by one on 64 connections, and in batches of 64 on 4; what has no server
gets all 512 in one call. What computes in int8 is also compared with our w8a8, where CHECKPOINT-w8a8 is there. All that
is vLLM has the same settings; the others have their defaults, but for what their files here say. CPU is that of all
processes of a system, without the client.

A peer that gives more than one text in twenty another label is marked. One that does not start, or does not do the same
work, is left out, with the reason.

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

from tuneserve.benchmarks.claims import MIN_ROUNDS, Claim
from tuneserve.benchmarks.serving import cost_report, front_end, interleave, systems
from tuneserve.benchmarks.serving.cost_report import Answers, Report
from tuneserve.benchmarks.serving.interleave import Scenario
from tuneserve.benchmarks.serving.load.texts import SENTENCES
from tuneserve.benchmarks.serving.peers import infinity, mlserver, onnx_runtime, transformers, vllm
from tuneserve.benchmarks.serving.peers.peer import BATCHES, Peer, Setting
from tuneserve.benchmarks.serving.systems import Engine, System
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job
from tuneserve.errors import StepFailed
from tuneserve.machine.runtime import preload

_INT8 = "w8a8"
# Short enough for models that take 64 tokens.
_TEXTS = [text for pair in itertools.permutations(SENTENCES, 2) if len(text := " ".join(pair)) <= 200]

PEERS = {
    peer.name: peer
    for peer in (
        Peer("onnx-fp32", partial(onnx_runtime.start, "fp32")),
        Peer("onnx-int8", partial(onnx_runtime.start, "int8"), is_int8=True),
        Peer("vllm-serve", vllm.serve),
        Peer("transformers", transformers.start, [BATCHES]),
        Peer("vllm-in-process", vllm.in_process, [BATCHES]),
        Peer("infinity", infinity.start, counts_tokens=False),
        Peer("mlserver", mlserver.start, counts_tokens=False),
    )
}


def labels(system: System) -> list[str]:
    """A system's labels for texts of two sentences each."""
    return system.do(Job(texts=_TEXTS, batch=32, answers=True)).answers


def scenarios(name: str, system: System, kinds: Sequence[str]) -> list[Scenario]:
    """Jobs of some seconds each, of these kinds."""
    return [one for one in front_end.classification(name, system, 512) if one.name.endswith(tuple(kinds))]


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
    with peer.start(setting) as system:
        expected, found = labels(ours["ours"]), labels(system)
        same = sum(one == other for one, other in zip(expected, found, strict=True))
        report.answers[peer.name] = Answers(same, len(expected))
        compared = [one for name, each in ours.items() for one in scenarios(name, each, peer.kinds)]
        for one in scenarios(peer.name, system, peer.kinds):
            compared.append(replace(one, counts_tokens=peer.counts_tokens))
        samples = interleave.measure(compared, rounds, show)
    report.add(f"{peer.name}, classification", samples, *claims(list(ours), peer))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--peer", "names", multiple=True, type=click.Choice(list(PEERS)), help="A peer; can be repeated.")
@click.option("--rounds", type=click.IntRange(1), default=MIN_ROUNDS, show_default=True, help="Rounds of each peer.")
@click.option("--report", "file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the tables here.")
def main(checkpoint: Path, names: Sequence[str], rounds: int, file: Path | None) -> None:
    """Measure peers with CHECKPOINT, a classifier, beside our server. Without --peer, all of them."""
    preload()
    result = Report(rounds, "python -m tuneserve.benchmarks.serving.peers", "peers/__main__")
    with tempfile.TemporaryDirectory(prefix="tuneserve-bench-") as folder, ExitStack() as stack:
        scratch, engine = Path(folder), Engine(kv_cache_memory_bytes=1 << 28)
        grpc, http = worker.clients(stack, scratch)
        models = {"model": checkpoint}
        if (quantized := checkpoint.with_name(f"{checkpoint.name}-{_INT8}")).is_dir():
            models[_INT8] = quantized
        click.echo("starting ours", err=True)
        own = stack.enter_context(systems.ours(models, grpc, scratch, engine))
        setting = Setting(checkpoint, scratch, http, engine)
        for peer in (PEERS[name] for name in names or PEERS):
            ours = {"ours": own}
            if peer.is_int8 and _INT8 in models:
                ours[f"ours {_INT8}"] = replace(own, model=_INT8)
            try:
                measure(result, peer, setting, ours, rounds)
            except StepFailed as error:
                # The reason is in the report, and the other peers are measured.
                click.echo(f"{peer.name}: {error}\n{error.hint}", err=True)
                result.missing.append(f"{peer.name}: {' '.join(str(error).split())}")
    cost_report.conclude(result, file or False)


if __name__ == "__main__":
    main()
