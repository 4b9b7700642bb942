"""The loads that every system of a phase gets: texts one by one and in batches, or streams of tokens."""

from dataclasses import dataclass, replace

from tuneserve.benchmarks.gpu.shapes import Roofs, Shape
from tuneserve.benchmarks.serving.workers import job
from tuneserve.benchmarks.serving.workers.job import Job

# About a paragraph, and a short answer.
_PROMPT, _OUTPUT = 256, 128


@dataclass(frozen=True)
class Load:
    """A fixed amount of work, `connections` calls at a time."""

    name: str
    count: int  # texts or prompts
    connections: int
    batch: int = 1  # texts of a call
    output: int = 0  # tokens; 0 for texts to classify
    # Whether vLLM without a server, which gets everything at once, does the same work.
    in_process: bool = True

    def job(self, shape: Shape, seed: int) -> Job:
        """The work of a seed."""
        if shape.pooling:
            return Job(texts=job.texts(self.count, seed), connections=self.connections, batch=self.batch)
        prompts = job.prompts(self.count, _PROMPT, shape.vocabulary, seed)
        return Job(prompts=prompts, max_tokens=self.output, connections=self.connections, stream=True)

    def trial(self, shape: Shape) -> Job:
        """The smallest job of this kind."""
        return replace(self, count=1, connections=1, output=min(self.output, 2)).job(shape, 0)

    def roof(self, roofs: Roofs, shape: Shape, scheme: str, tokens: float) -> float | None:
        """The most texts, of `tokens` tokens on average, or output tokens a second."""
        if shape.pooling:
            return roofs.texts_a_second(shape, scheme, tokens, self.connections * self.batch)
        return roofs.tokens_a_second(shape, scheme, _PROMPT, self.output, self.connections)


def loads(shape: Shape, tiny: bool, several: bool = False) -> list[Load]:
    """The loads of a model; tiny ones only show that everything works.

    For `several` processes, among which connections are spread at random, there are more of these, and never one alone.
    """
    texts, streams = (16, 4) if tiny else (64, 64)
    many, output = (2 if several else 1), 8 if tiny else _OUTPUT
    if shape.pooling:
        single, most = many * texts, many * texts * (2 if tiny else 32)
        found = [
            Load("one text at a time", 16 if tiny else 128, 1, in_process=False),
            Load(f"{single} single texts at a time", most, single, in_process=False),
            Load("batches", texts * (16 if tiny else 128), 16 if several else 4, batch=texts),
        ]
    else:
        most = many * streams
        found = [Load("one stream", 1, 1, output=output), Load(f"{most} streams", most, most, output=output)]
    return found[1:] if several else found
