"""`tuneserve call generate`: plain prompts to a generation model, with the answers streamed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tuneserve.call.answers import answer_options, print_answers
from tuneserve.call.common import client_options, model_option, stdin_text

if TYPE_CHECKING:
    from tuneserve.client.endpoint import Endpoint
    from tuneserve.v1 import generation_pb2


@click.command("generate")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@model_option
@answer_options
@client_options()
def generate_command(
    prompts: Sequence[str],
    model: str,
    request: "generation_pb2.GenerateRequest",
    server: "Endpoint",
    as_json: bool,
) -> None:
    """Let a model continue each PROMPT; what it writes is printed as it is generated.

    For models trained on prompts and completions, and for base models: a prompt is sent as it is, without a chat
    template. Without PROMPT, all of standard input is the prompt, without its last line break.

    \b
    tuneserve call generate --model poet "Once upon a time"
    tuneserve call generate --model translator --temperature 0 "Translate: Good morning." "Translate: Good night."
    tuneserve call generate --model poet --max-tokens 100 < beginning.txt
    """
    from tuneserve.v1 import generation_pb2 as pb

    requests = [
        pb.GenerateRequest(
            model=model, prompt=pb.Prompt(text=prompt), sampling=request.sampling, adapter=request.adapter
        )
        for prompt in prompts or [stdin_text("PROMPT", strip=False)]
    ]
    print_answers(requests, server, as_json)
