"""What the process that checks constraints finds, and how it is asked."""

import json
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
        with pytest.raises(InvalidInput, match=r"^sampling\.structured_output\.grammar: (takes too long|can't)"):
            await constraints.checked(pb.StructuredOutput(grammar=grammar))
    await constraints.close()
