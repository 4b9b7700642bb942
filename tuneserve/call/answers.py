"""What `tuneserve call chat` and `generate` share: the options for answers, and printing them as they arrive."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuneserve.call.channel import connected
from tuneserve.call.common import Function, print_json

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import generation_pb2


def answer_options(command: Function) -> Callable[..., Any]:
    """Adds the options for answers; the command gets them as `request`, a GenerateRequest without model and prompt."""
    options = (
        click.option("--adapter", default="", metavar="NAME", help="The LoRA adapter to answer with. Default: none."),
        click.option(
            "--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Tokens of an answer at most."
        ),
        click.option(
            "--temperature", type=float, help="0 always takes the most likely token.  [default: the server's, 1]"
        ),
        click.option(
            "--json-schema", metavar="FILE|JSON", help="Answer JSON of this schema: a file, or the schema itself."
        ),
        click.option("--regex", metavar="PATTERN", help="Answer a text that matches this as a whole."),
        click.option("--choice", "choices", multiple=True, metavar="TEXT", help="Answer one of these; once for each."),
    )

    @functools.wraps(command)
    def run(
        *arguments: Any,
        adapter: str,
        max_tokens: int,
        temperature: float | None,
        json_schema: str | None,
        regex: str | None,
        choices: Sequence[str],
        **values: Any,
    ) -> Any:
        from tuneserve.v1 import generation_pb2 as pb

        form = _form(json_schema, regex, choices)
        sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=temperature, structured_output=form)
        return command(*arguments, request=pb.GenerateRequest(adapter=adapter, sampling=sampling), **values)

    return functools.reduce(lambda function, option: option(function), reversed(options), run)


def print_answers(requests: "Iterable[generation_pb2.GenerateRequest]", server: "Endpoint", as_json: bool) -> None:
    """Makes the calls one after the other, and prints each answer as it arrives."""
    from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

    with connected(server) as channel:
        for request in requests:
            _print(GenerationServiceStub(channel).GenerateStream(request, **server.options), request, as_json)


def given_text(option: str, given: str) -> str:
    """Returns the JSON that is given, or the content of the file that is named."""
    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise click.UsageError(f"{option}: {given}: {reason}") from None


def _print(
    responses: "Iterable[generation_pb2.GenerateStreamResponse]",
    request: "generation_pb2.GenerateRequest",
    as_json: bool,
) -> None:
    from tuneserve.v1 import generation_pb2 as pb

    answer, cut = _Answer(), False
    try:
        for response in responses:
            if as_json:
                print_json(response, indent=None)
                continue
            for completion in response.completions:
                answer.show(completion)
                cut = completion.finish_reason == pb.FINISH_REASON_LENGTH
    finally:
        answer.end()
    if cut:
        most = request.sampling.max_tokens
        click.echo(f"(cut off: the answer reached --max-tokens {most} or the model's length)", err=True)


class _Answer:
    """Prints an answer as it arrives, and ends each of its parts with a line break."""

    def __init__(self) -> None:
        self._part = ""

    def show(self, completion: "generation_pb2.Completion") -> None:
        """Prints the new part of an answer."""
        if completion.reasoning:
            self._begin("reasoning")
            click.secho(completion.reasoning, nl=False, err=True, dim=True)
        if completion.text:
            self._begin("text")
            click.echo(completion.text, nl=False)
        for call in completion.tool_calls:
            self._begin(f"call {call.index}")
            click.echo((f"{call.name}(" if call.name else "") + call.arguments, nl=False)

    def end(self) -> None:
        """Ends the last line."""
        self._begin("")

    def _begin(self, part: str) -> None:
        if self._part not in ("", part):
            click.echo(")" if self._part.startswith("call") else "", err=self._part == "reasoning")
        self._part = part


def _form(
    json_schema: str | None, regex: str | None, choices: Sequence[str]
) -> "generation_pb2.StructuredOutput | None":
    """Returns the structure that the answer must have, if any."""
    from tuneserve.v1 import generation_pb2 as pb

    if sum(bool(one) for one in (json_schema, regex, choices)) > 1:
        raise click.UsageError("--json-schema, --regex and --choice: give one of them")
    if json_schema:
        return pb.StructuredOutput(json_schema=given_text("--json-schema", json_schema))
    if regex:
        return pb.StructuredOutput(regex=regex)
    return pb.StructuredOutput(choice=pb.Choice(options=choices)) if choices else None
