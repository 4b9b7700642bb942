"""Chats over the wire: what the checkpoint's template gets of them, and what happens when it fails."""

import inspect
import json

import grpc
import pytest
from google.protobuf import json_format, struct_pb2

from tuneserve.server.config import ModelConfig
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

# As Qwen 2.5 writes tools and their answers, without its default system prompt.
TOOLS_TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# What templates do, one mode each; `mode` is an argument.
ODD_TEMPLATE = """
{%- macro again(x) %}{{ again(x) }}{% endmacro -%}
{%- if mode == 'literal' %}{{ raise_exception('Roles must alternate.') }}{% endif -%}
{%- if mode == 'echo' %}{{ raise_exception('bad content ' + messages[0].content) }}{% endif -%}
{%- if mode == 'undefined' %}{{ messages[0].nothing.here }}{% endif -%}
{%- if mode == 'type' %}{{ messages[0].content + 1 }}{% endif -%}
{%- if mode == 'key' %}{{ documents[0]['a'] | tojson }}{{ {}[messages[0].content].x }}{% endif -%}
{%- if mode == 'zero' %}{{ 1 / (messages | length - 1) }}{% endif -%}
{%- if mode == 'recursion' %}{{ again(1) }}{% endif -%}
{%- if mode == 'range' %}{% for i in range(100000000) %}x{% endfor %}{% endif -%}
{%- if mode == 'unsafe' %}{{ messages.__class__.__mro__ }}{% endif -%}
{%- for document in documents or [] %}[{{ document.title }}: {{ document.text }}]{% endfor -%}
{%- for message in messages %}{{ message.name or message.role }}: {{ message.content }}
{% endfor -%}
{{ eos_token }}{{ arguments | default(number | default('-')) }}
"""

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "days": {"type": "integer", "minimum": 1, "default": 2.5},
                "city": {"type": "string", "enum": ["Lisbon", "東京"]},
            },
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
async def stub(serve_config, make_llama):
    """Models `tools` and `odd` by their template, `masked` that masks, and `plain` without a template."""
    config = loopback(
        {
            "tools": make_llama(TOOLS_TEMPLATE),
            "odd": make_llama(ODD_TEMPLATE),
            "masked": ModelConfig(path=make_llama(ODD_TEMPLATE), redact=("email",)),
            "plain": make_llama(None),
        }
    )
    async with serve_config(config) as served:
        yield GenerationServiceStub(served.channel)


def struct(**values) -> struct_pb2.Struct:
    return json_format.ParseDict(values, struct_pb2.Struct())


def said(text: str = "hello", **fields) -> pb.ChatMessage:
    return pb.ChatMessage(**{"role": "user", "content": text, **fields})


def chat(*messages: pb.ChatMessage, model: str = "odd", **fields) -> pb.TokenizeRequest:
    fields = {key: struct(**value) if key == "template_arguments" else value for key, value in fields.items()}
    return pb.TokenizeRequest(model=model, prompt=pb.Prompt(chat=pb.Chat(messages=messages or [said()], **fields)))


async def test_tools_and_their_answers_go_through_the_template(stub):
    call = struct(id="c1", type="function", function={"name": "weather", "arguments": {"days": 3, "city": "Lisbon"}})
    response = await stub.Tokenize(
        chat(
            said("Weather?"),
            said("", role="assistant", tool_calls=[call]),
            said("Sunny.", role="tool", tool_call_id="c1", name="weather"),
            model="tools",
            tools=[struct(**TOOL)],
        )
    )
    written = response.text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(written) == TOOL
    # In the order in which models were taught, and whole numbers as such.
    assert written.startswith('{"type": "function", "function": {"name": "weather", "description":')
    assert '"minimum": 1, ' in written or '"minimum": 1}' in written
    assert "東京" in written
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Lisbon", "days": 3}}\n</tool_call>' in response.text
    assert "<tool_response>\nSunny.\n</tool_response>" in response.text
    assert response.text.endswith("<|im_start|>assistant\n")


async def test_without_tools_the_template_sees_none(stub):
    response = await stub.Tokenize(chat(said("hi"), model="tools"))
    assert response.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


async def test_equal_tools_make_equal_prompts(stub):
    keys = [f"key{index}" for index in range(40)]
    forwards = struct(**{key: 1 for key in keys})
    backwards = struct(**{key: 1 for key in reversed(keys)})
    texts = [(await stub.Tokenize(chat(model="tools", tools=[tool]))).text for tool in (forwards, backwards)]
    assert texts[0] == texts[1]


async def test_documents_names_and_arguments(stub):
    document = struct(title="Sky", text="It is blue.")
    response = await stub.Tokenize(
        chat(said("Why?", name="Ann"), documents=[document], template_arguments={"number": 7})
    )
    assert response.text == "[Sky: It is blue.]Ann: Why?\n<|end|>7"


async def test_documents_that_the_template_ignores_are_refused(stub, refused):
    """The model would answer without them, and nobody would know."""
    request = chat(model="tools", documents=[struct(title="Sky", text="It is blue.")])
    generate = pb.GenerateRequest(model="tools", prompt=request.prompt)
    for call in (stub.Tokenize(request), stub.Generate(generate)):
        error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
        assert error.details().startswith("prompt.chat.documents: are ignored by the model's chat template")
    # Of these documents its template has nothing to say.
    error = await refused(stub.Tokenize(chat(model="tools", documents=[struct()])), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.chat.documents: ")


@pytest.mark.parametrize(
    ("value", "written"), [(1, "1"), (-0.5, "-0.5"), (2**53, str(2**53)), (True, "True"), (None, "None"), ("x", "x")]
)
async def test_numbers_stay_what_they_are(stub, value, written):
    response = await stub.Tokenize(chat(template_arguments={"number": [value]}))
    shown = f"'{written}'" if isinstance(value, str) else written
    assert response.text.endswith(f"<|end|>[{shown}]")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_numbers_that_json_lacks_are_refused(stub, refused, number):
    arguments = struct_pb2.Struct(fields={"number": struct_pb2.Value(number_value=number)})
    request = pb.TokenizeRequest(
        model="odd", prompt=pb.Prompt(chat=pb.Chat(messages=[said()], template_arguments=arguments))
    )
    error = await refused(stub.Tokenize(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.chat.template_arguments: ")


def reserved() -> list[str]:
    from transformers import PreTrainedTokenizerBase

    return ["messages", "eos_token", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters]


@pytest.mark.parametrize("name", reserved())
async def test_arguments_replace_nothing_of_the_servers(stub, refused, name):
    error = await refused(stub.Tokenize(chat(template_arguments={name: True})), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"prompt.chat.template_arguments: may not hold {name}")


async def test_a_reason_that_stands_in_the_template_is_passed_on(stub, refused):
    call = stub.Tokenize(chat(template_arguments={"mode": "literal"}))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.chat: the chat template refused it: Roles must alternate.")


@pytest.mark.parametrize("mode", ["echo", "undefined", "type", "key", "zero", "recursion", "range", "unsafe"])
async def test_a_template_that_fails_is_the_callers_error_and_repeats_nothing(stub, refused, caplog, mode):
    request = chat(said("CANARY"), documents=[struct(CANARY=1)], template_arguments={"mode": mode, "x": "CANARY"})
    error = await refused(stub.Tokenize(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.chat: the chat template can't render it")
    assert "CANARY" not in error.details() + str(error.trailing_metadata()) + caplog.text
    # And the next caller's is rendered.
    assert (await stub.Tokenize(chat())).text.startswith("user: hello")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (chat(said(role="")), "prompt.chat.messages[0].role"),
        (chat(*[said()] * 65), "prompt.chat.messages"),
        (chat(tools=[struct()] * 65), "prompt.chat.tools"),
        (chat(documents=[struct()] * 65), "prompt.chat.documents"),
        (chat(said(tool_calls=[struct()] * 65)), "prompt.chat.messages[0].tool_calls"),
        (chat(model="plain"), "prompt.chat"),
    ],
    ids=["role", "messages", "tools", "documents", "tool_calls", "no template"],
)
async def test_bad_chats_are_named(stub, refused, request_, field):
    error = await refused(stub.Tokenize(request_), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"{field}: ")


async def test_personal_data_is_masked_wherever_it_stands(stub):
    mail = "jane.doe@example.com"
    request = chat(
        said(f"I am {mail}.", name=mail),
        model="masked",
        documents=[struct(title=mail, text="It is blue.")],
        template_arguments={"number": [{"who": mail}]},
    )
    response = await stub.Tokenize(request)
    assert mail not in response.text
    assert response.text.count("[EMAIL]") == 4


async def test_a_model_that_masks_takes_no_token_ids(stub, refused):
    request = pb.TokenizeRequest(model="masked", prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[5])))
    error = await refused(stub.Tokenize(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.token_ids: ")
    generate = pb.GenerateRequest(model="masked", prompt=request.prompt)
    error = await refused(stub.Generate(generate), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.token_ids: ")
