"""What the process that checks constraints finds, and how it is asked."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tuneserve.server.call.context import Call, begin
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.metrics import Metrics
from tuneserve.server.text.constraints import Constraints
from tuneserve.v1 import generation_pb2 as pb


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    """20,000 tokens: masks of a few hundred take no time, whatever they are for."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pairs, triples = list(product(letters, repeat=2)), list(product(letters, repeat=3))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *map("".join, pairs), *map("".join, triples)]
    merges = [*pairs, *((first + second, third) for first, second, third in triples)]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


SLOW = ["start: a\na: /./ | a a", 'root ::= root root | [a-z] | ""', 'root ::= a\na ::= "x" | [^x] | a a a']

# Of each kind, and as large as they get.
FAST = [
    pb.StructuredOutput(grammar='root ::= (word " ")+\nword ::= [a-z]+'),
    pb.StructuredOutput(grammar='start: sum\nsum: part ("+" part)*\npart: /[0-9]+/ | "(" sum ")"'),
    pb.StructuredOutput(regex=r"[a-z ]{1,500}\.( [a-z ]{1,500}\.)*"),
    pb.StructuredOutput(choice=pb.Choice(options=[f"option {number}" for number in range(1024)])),
    pb.StructuredOutput(
        json_schema=json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(100)}})
    ),
    pb.StructuredOutput(json_schema='{"type": "array", "items": {"$ref": "#"}}'),
    pb.StructuredOutput(json_schema="{}"),
]


async def test_what_makes_masks_slow_is_refused(vocabulary):
    begin(Call("a", "Generate", Tenant("one"), {}, Metrics()))
    constraints = Constraints(vocabulary.to_str(), vocabulary.get_vocab_size(), None)
    for form in FAST:
        await constraints.checked(form)
    for grammar in SLOW:
        with pytest.raises(InvalidInput, match=r"^sampling\.structured_output\.grammar: (takes too|can't)"):
            await constraints.checked(pb.StructuredOutput(grammar=grammar))
    await constraints.close()


def framed(*messages: str | bytes) -> bytes:
    given = [message.encode() if isinstance(message, str) else message for message in messages]
    return b"".join(len(message).to_bytes(4, "big") + message for message in given)


@pytest.fixture
def started(vocabulary) -> Callable:
    """Starts the process; gives its end of the pipe, and itself."""

    @contextmanager
    def start() -> Iterator[tuple[socket.socket, subprocess.Popen]]:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "tuneserve.server.text.constraint_process"]
        with subprocess.Popen(command, stdin=theirs) as process, ours:
            theirs.close()
            ours.sendall(framed(vocabulary.to_str(), str(vocabulary.get_vocab_size()), "-1"))
            assert ours.recv(1), "it has read its tokenizer"
            yield ours, process

    return start


def ask(process: socket.socket, form: pb.StructuredOutput, seconds: float = 30.0, size: int = 1 << 30) -> bytes:
    """Returns what comes back for a constraint, to the end of its stream."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(process, [b"?"], [theirs.fileno()])
        ours.sendall(framed(str(seconds), str(size), form.SerializeToString()))
        return b"".join(iter(lambda: ours.recv(4096), b""))


def test_a_constraint_is_good_or_a_field_is_named(started):
    with started() as (process, _):
        assert ask(process, FAST[0]) == b"null"
        field, what = json.loads(ask(process, pb.StructuredOutput(regex="(secret")))
        assert field == "sampling.structured_output.regex"
        assert "secret" not in what
        found = json.loads(ask(process, pb.StructuredOutput(grammar="root ::= nothing")))
        assert found == ["sampling.structured_output.grammar", "can't be read"]


def test_what_takes_too_much_ends_alone(started):
    # Many seconds of Python's `re`.
    long = pb.StructuredOutput(regex="(?i)" + "[a-\uffff]" * 3600)
    large = pb.StructuredOutput(json_schema='{"type": "array", "maxItems": 1000000000}')
    with started() as (process, _):
        assert ask(process, long, seconds=0.2) == b""
        assert ask(process, large, size=1 << 26) == b""
        assert ask(process, FAST[0]) == b"null"


def test_it_ends_with_whoever_started_it(started):
    with started() as (ours, process):
        ours.close()
        assert process.wait(30) == 0
