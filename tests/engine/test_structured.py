"""Forms that would take an engine long, or down: refused or answered within bounds, and the engine goes on."""

import json

import grpc
import pytest

from tuneserve.v1 import generation_pb2 as pb

pytestmark = pytest.mark.engine

PROMPT = pb.Prompt(text="The colours of the rainbow are")
DEEP: dict[str, object] = {}
for _ in range(30):
    DEEP = {"type": "array", "items": DEEP, "minItems": 1}
# By what answers them: nothing at all is needed but an answer, or a refusal that names the field.
HARD = {
    "a billion items": pb.StructuredOutput(json_schema='{"type": "array", "maxItems": 1000000000}'),
    "items as a float": pb.StructuredOutput(json_schema='{"type": "array", "minItems": 1e300}'),
    "a key in disguise": pb.StructuredOutput(json_schema='{"type": "array", "max\\u0049tems": 1000000000}'),
    "items made up for": pb.StructuredOutput(
        json_schema='{"type": "array", "maxItems": 1000000000, "items": {"minItems": -1000000000}}'
    ),
    "a schema in a grammar": pb.StructuredOutput(grammar='start: %json {"type": "array", "maxItems": 1000000000}'),
    "a schema of itself": pb.StructuredOutput(json_schema='{"$ref": "#"}'),
    "endless arrays": pb.StructuredOutput(json_schema='{"type": "array", "items": {"$ref": "#"}, "minItems": 1}'),
    "nesting": pb.StructuredOutput(json_schema=json.dumps(DEEP)),
    "many properties": pb.StructuredOutput(
        json_schema=json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(700)}})
    ),
    "nested repetition": pb.StructuredOutput(regex="((a{1,100}){1,100}){1,100}"),
    "ambiguous repetition": pb.StructuredOutput(regex="(.*a.*){50}"),
    "a rule of itself": pb.StructuredOutput(grammar="root ::= root"),
    "left recursion": pb.StructuredOutput(grammar='root ::= root "a" | "b"'),
    "an ambiguous grammar": pb.StructuredOutput(grammar='root ::= a\na ::= "x" | a a'),
    "doubling rules": pb.StructuredOutput(
        grammar="\n".join(["root ::= r1 r1", *(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(1, 60)), 'r60 ::= "a"'])
    ),
}


def generate(real, **fields) -> grpc.Future:
    """A call that has ended, or run past any bound."""
    request = pb.GenerateRequest(model="chat", prompt=PROMPT, sampling=pb.SamplingParams(temperature=0, **fields))
    call = real.generation.Generate.future(request, timeout=90)
    call.exception()
    return call


@pytest.mark.parametrize("form", HARD.values(), ids=HARD)
def test_a_hard_form_neither_hangs_nor_kills(real, form):
    call = generate(real, max_tokens=40, structured_output=form)
    assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), call.details()
    if call.code() == grpc.StatusCode.INVALID_ARGUMENT:
        assert call.details().startswith("sampling.structured_output")
    after = generate(real, max_tokens=2, ignore_eos=True)
    assert after.code() == grpc.StatusCode.OK, after.details()
    assert len(after.result().completions[0].token_ids) == 2


GREEDY = ["a billion items", "items as a float", "a key in disguise", "items made up for", "a schema in a grammar"]


@pytest.mark.parametrize("form", GREEDY)
def test_forms_that_would_take_all_memory_are_refused(real, form):
    assert generate(real, max_tokens=2, structured_output=HARD[form]).code() == grpc.StatusCode.INVALID_ARGUMENT
