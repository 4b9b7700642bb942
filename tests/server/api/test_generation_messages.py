"""Generation's messages to what the engine takes, and back, without a server: what is counted, and what is refused."""

import json
import math

import pytest
from google.protobuf import struct_pb2

from tuneserve.server.api import generation_messages as convert
from tuneserve.server.engine.interface import Alternative, Delta, Logprob, Sampling, StructuredOutput, ToolCall
from tuneserve.v1 import generation_pb2 as pb

from .checking import good, raised, refusal


def value(number: float) -> struct_pb2.Value:
    return struct_pb2.Value(number_value=number)


def many(one: struct_pb2.Value, count: int) -> struct_pb2.Struct:
    numbers = struct_pb2.ListValue(values=[one] * count)
    return struct_pb2.Struct(fields={"a": struct_pb2.Value(list_value=numbers)})


def chat(*tools: struct_pb2.Struct, **fields) -> pb.Chat:
    messages = fields.pop("messages", [pb.ChatMessage(role="user", content="hi")])
    return pb.Chat(messages=messages, tools=tools, **fields)


NUMBERS = [1e308, -1e308, 1e21, 1e20, 123456789012345680.0, 1.5e300, 5e-324, -1.2345678901234567e-300, 0.1, 7.0]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_grow_little(number):
    given = chat(many(value(number), 1000))
    [tool] = good(convert.conversation, given, 4096).tools
    assert tool["a"] == [number] * 1000
    # Eleven bytes and those of the list around them; 24 characters are the longest that a double has.
    assert len(json.dumps(tool)) < 2.5 * given.ByteSize()


@pytest.mark.parametrize(
    ("number", "text"), [(7.0, "7"), (-3.0, "-3"), (2.0**53, "9007199254740992"), (1e20, "1" + "0" * 20), (0.5, "0.5")]
)
def test_whole_numbers_are_written_as_such(number, text):
    [tool] = good(convert.conversation, chat(many(value(number), 1)), 64).tools
    assert json.dumps(tool) == f'{{"a": [{text}]}}'


def nested(depth: int) -> struct_pb2.Struct:
    inner = struct_pb2.Struct()
    for _ in range(depth):
        inner = struct_pb2.Struct(fields={"a": struct_pb2.Value(struct_value=inner), "b": value(1.0)})
    return inner


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (chat(many(value(1.0), 60), many(value(1.0), 60)), "prompt.chat.tools[1]"),
        (chat(many(struct_pb2.Value(), 200)), "prompt.chat.tools[0]"),
        (chat(*[nested(8)] * 8), "prompt.chat.tools[5]"),
        (chat(documents=[many(value(1.0), 100)]), "prompt.chat.documents[0]"),
        (chat(template_arguments=many(value(1.0), 100)), "prompt.chat.template_arguments"),
        (
            chat(messages=[pb.ChatMessage(role="user", tool_calls=[many(value(1.0), 30)])] * 4),
            "prompt.chat.messages[3].tool_calls[0]",
        ),
    ],
)
def test_all_objects_of_a_call_are_counted_together(given, field):
    error = refusal(convert.conversation, given, 100)
    assert error.field == field
    assert "the 100 values" in error.description
    assert good(convert.conversation, given, 1000)


def user(content: str = "hi", **fields) -> pb.ChatMessage:
    return pb.ChatMessage(role="user", content=content, **fields)


def choice(mode: int, name: str = "") -> pb.ToolChoice:
    return pb.ToolChoice(mode=mode, name=name)


TOOL = struct_pb2.Struct(fields={"name": struct_pb2.Value(string_value="look")})


def test_a_template_sees_only_what_a_message_has():
    plain, whole = user(), user(name="anna", tool_call_id="1", tool_calls=[TOOL])
    found = good(convert.conversation, chat(messages=[plain, whole]), 64)
    assert found.messages == [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "hi", "name": "anna", "tool_call_id": "1", "tool_calls": [{"name": "look"}]},
    ]
    assert (found.tools, found.documents, found.arguments, found.open_turn) == ([], [], {}, True)
    assert not good(convert.conversation, chat(add_generation_prompt=False), 64).open_turn


@pytest.mark.parametrize(
    ("given", "tools", "required"),
    [
        (choice(pb.TOOL_CHOICE_MODE_UNSPECIFIED), 1, None),
        (choice(pb.TOOL_CHOICE_MODE_AUTO), 1, None),
        (choice(pb.TOOL_CHOICE_MODE_NONE), 0, None),
        (choice(pb.TOOL_CHOICE_MODE_REQUIRED), 1, ""),
        (choice(pb.TOOL_CHOICE_MODE_REQUIRED, "look"), 1, "look"),
    ],
)
def test_tools_are_up_to_the_model_hidden_or_required(given, tools, required):
    found = good(convert.conversation, chat(TOOL, tool_choice=given), 64)
    assert (len(found.tools), found.required) == (tools, required)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (chat(messages=[]), "prompt.chat.messages"),
        (chat(messages=[user()] * 65), "prompt.chat.messages"),
        (chat(messages=[user(), pb.ChatMessage(content="hi")]), "prompt.chat.messages[1].role"),
        (chat(TOOL, tool_choice=choice(99)), "prompt.chat.tool_choice.mode"),
        (chat(TOOL, tool_choice=choice(pb.TOOL_CHOICE_MODE_AUTO, "look")), "prompt.chat.tool_choice.name"),
        (chat(tool_choice=choice(pb.TOOL_CHOICE_MODE_REQUIRED)), "prompt.chat.tools"),
        (chat(TOOL, many(value(math.nan), 1)), "prompt.chat.tools[1]"),
    ],
)
def test_bad_conversations_are_named(given, field):
    assert refusal(convert.conversation, given, 64).field == field


def test_arguments_that_stand_in_for_the_servers_own_are_named():
    good(convert.check_arguments, {"enable_thinking": True}, {"messages", "tools"})
    error = refusal(convert.check_arguments, {"tools": [], "ok": 1, "messages": []}, {"messages", "tools"})
    assert error.description == "may not hold messages, tools"


def test_token_ids_are_those_of_the_vocabulary():
    assert good(convert.token_ids, pb.TokenIds(ids=[0, 9]), 2, 10, redacted=False) == [0, 9]
    for ids, field in (([], "ids"), ([1, 2, 3], "ids"), ([1, 10], "ids[1]"), ([-1], "ids[0]")):
        error = refusal(convert.token_ids, pb.TokenIds(ids=ids), 2, 10, redacted=False)
        assert error.field == f"prompt.token_ids.{field}"
    # What a mask hides in texts, ids would show.
    assert "use text" in refusal(convert.token_ids, pb.TokenIds(ids=[1]), 2, 10, redacted=True).description


def test_a_completion_has_the_room_that_the_prompt_leaves():
    assert convert.sampling(pb.SamplingParams(), None, 60, 64) == Sampling(max_tokens=4)
    assert convert.sampling(pb.SamplingParams(max_tokens=9), None, 60, 64).max_tokens == 4
    assert convert.sampling(pb.SamplingParams(max_tokens=3), None, 60, 64).max_tokens == 3
    assert convert.sampling(pb.SamplingParams(min_tokens=4), None, 60, 64).min_tokens == 4
    for params, length, field in (
        (pb.SamplingParams(), 0, "prompt"),
        (pb.SamplingParams(), 64, "prompt"),
        (pb.SamplingParams(min_tokens=5), 60, "sampling.min_tokens"),
    ):
        assert raised(convert.sampling, params, None, length, 64).field == field


def test_what_is_set_goes_to_the_engine_and_the_rest_is_its_default():
    params = pb.SamplingParams(
        temperature=0.0, top_k=7, stop=["x"], logit_bias={3: -1.0}, structured_output=pb.StructuredOutput(regex="a")
    )
    structured = StructuredOutput("regex", "a")
    assert convert.sampling(params, structured, 1, 8) == Sampling(
        max_tokens=7, temperature=0.0, top_k=7, stop=["x"], logit_bias={3: -1.0}, structured=structured
    )


def test_log_probabilities_of_one_answer_are_bounded():
    params = pb.SamplingParams(n=2, logprobs=15, max_tokens=4096)
    assert convert.sampling(params, None, 1, 1 << 20).logprobs == 15
    params.max_tokens += 1
    error = raised(convert.sampling, params, None, 1, 1 << 20)
    assert error.field == "sampling.logprobs"
    assert f"{2 * 4097 * 16} log probabilities; allowed: {1 << 17}" in error.description


def test_parts_of_characters_in_a_prompt_count_four_times():
    params = pb.SamplingParams(prompt_logprobs=1)
    assert convert.sampling(params, None, 4096, 1 << 20).prompt_logprobs == 1
    assert convert.sampling(params, None, 1024, 1 << 20, fragments=1024).prompt_logprobs == 1
    for length, fragments in ((4097, 0), (1024, 1025)):
        error = raised(convert.sampling, params, None, length, 1 << 20, fragments=fragments)
        assert error.field == "sampling.prompt_logprobs"


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "top_k": 10, "seed": 0, "min_tokens": 0},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 0.1, "min_p": 1.0, "top_k": 0},
        {"n": 128, "logprobs": 20, "prompt_logprobs": 0},
        {"stop": ["x" * 1024] * 64, "bad_words": ["a"] * 128, "stop_token_ids": [0] * 64},
        {"allowed_token_ids": [9] * 1024, "logit_bias": {0: -100.0, 9: 100.0}},
    ],
)
def test_all_up_to_its_bounds_is_good(fields):
    good(convert.check_sampling, pb.SamplingParams(**fields), 10, stream=False)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": math.nan}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_k": 11}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 2, "temperature": 0.0}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": ["x", ""]}, "stop[1]"),
        ({"stop": ["x" * 1025]}, "stop[0]"),
        ({"bad_words": ["x"] * 129}, "bad_words"),
        ({"bad_words": [" "]}, "bad_words[0]"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"stop_token_ids": [1, 10]}, "stop_token_ids[1]"),
        ({"allowed_token_ids": [1] * 1025}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias"),
        ({"logit_bias": {10: 1.0}}, "logit_bias[10]"),
        ({"logit_bias": {1: 100.5}}, "logit_bias[1]"),
        ({"logit_bias": {1: math.nan}}, "logit_bias[1]"),
    ],
)
def test_fields_out_of_their_bounds_are_named(fields, field):
    error = refusal(convert.check_sampling, pb.SamplingParams(**fields), 10, stream=False)
    assert error.field == f"sampling.{field}"


def test_all_wrong_numbers_are_named_at_once():
    error = refusal(convert.check_sampling, pb.SamplingParams(max_tokens=0, top_p=2.0), 10, stream=False)
    assert [field for field, _ in error.violations] == ["sampling.max_tokens", "sampling.top_p"]


def test_streams_have_no_log_probabilities_of_prompts():
    params = pb.SamplingParams(prompt_logprobs=0)
    good(convert.check_sampling, params, 10, stream=False)
    assert "use Generate" in refusal(convert.check_sampling, params, 10, stream=True).description


async def test_all_of_a_delta_is_in_its_completion():
    delta = Delta(
        1,
        "ab",
        [7, 8],
        [Logprob(7, -0.5, [Alternative(7, -0.5, "a"), Alternative(9, -1.0, "é")])],
        "tool_calls",
        stop_text="x",
        stop_token_id=0,
        reasoning="so",
        tool_calls=[ToolCall(0, "1", "look", "{}")],
    )
    made = await convert.completion(delta)
    assert (made.index, made.text, list(made.token_ids), made.reasoning) == (1, "ab", [7, 8], "so")
    assert (made.finish_reason, made.stop_text) == (pb.FINISH_REASON_TOOL_CALLS, "x")
    # The token 0 is one, too.
    assert (made.HasField("stop_token_id"), made.stop_token_id) == (True, 0)
    assert made.logprobs == [
        pb.TokenLogprob(
            token_id=7,
            logprob=-0.5,
            alternatives=[
                pb.TokenAlternative(token_id=7, logprob=-0.5, text="a"),
                pb.TokenAlternative(token_id=9, logprob=-1.0, text="é"),
            ],
        )
    ]
    assert made.tool_calls == [pb.ToolCall(index=0, id="1", name="look", arguments="{}")]
    part = await convert.completion(Delta(0, "a", [7]))
    assert (part.finish_reason, part.HasField("stop_token_id")) == (pb.FINISH_REASON_UNSPECIFIED, False)
