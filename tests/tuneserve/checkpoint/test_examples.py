"""Rows of generation as token ids: one metric, whoever measures it."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf import json_format
from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tuneserve import checkpoint
from tuneserve.checkpoint import examples
from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.evaluation import measurement, verify
from tuneserve.finetune.data import tokens
from tuneserve.finetune.eval import evaluation
from tuneserve.server.api.generation_messages import conversation
from tuneserve.server.call.errors import Violations
from tuneserve.server.text.tokenizer import Tokenizer as Served
from tuneserve.v1 import generation_pb2 as gen
from tuneserve.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

from ... import tiny

READS = 64
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The tokenizer learned "film" as one token, which lies across the border of the first row.
ROWS: list[Row] = [
    {"prompt": "the fil", "completion": "m was good"},
    {"prompt": "the movie was", "completion": " bad"},
    {"prompt": "the long " * 40 + "film was", "completion": " good"},
    {"prompt": "the film was", "completion": " good, " * 60},
]


def chat(*contents: str) -> Row:
    roles = ["user", "assistant"] * 9 if len(contents) % 2 == 0 else ["system", *["user", "assistant"] * 9]
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


CHATS = [
    chat("how was it", "the film was good"),
    chat("be brief", "how was it", "good", "and the movie", "bad"),
    chat("be brief", "was the film good " * 30, "good"),
]


@pytest.fixture(scope="session", params=["plain", "bos", "bos-and-eos"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a trained BPE of bytes, which puts nothing around a text, or a token before it, or both."""
    inner = tiny.byte_tokenizer(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    if request.param != "plain":
        single = "<s> $A" if request.param == "bos" else "<s> $A </s>"
        special = [("<s>", 0), ("</s>", 1)]
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<|im_end|>", pad_token="</s>", chat_template=TEMPLATE
    )
    target = tmp_path_factory.mktemp("models") / "llama"
    # Wide, so that one token more or less is seen in the perplexity.
    settings = {"max_position_embeddings": READS, "initializer_range": 0.3, "pad_token_id": 1}
    tiny.model("AutoModelForCausalLM", "llama", vocab_size=len(tokenizer), **settings).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture
def tokenizer(directory: Path) -> Any:
    return measurement.load_tokenizer(directory)


class Server(generation_pb2_grpc.GenerationServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """The product's own tokenizer before the model in transformers, over a real wire."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = Served(directory, READS)
        self.scored: list[list[int]] = []

    def GetModel(self, request: Any, context: Any) -> model_pb2.GetModelResponse:
        return model_pb2.GetModelResponse(model=model_pb2.Model(limits=model_pb2.Limits(max_length=READS)))

    def Tokenize(self, request: gen.TokenizeRequest, context: Any) -> gen.TokenizeResponse:
        return asyncio.run(self._tokenize(request.prompt))

    async def _tokenize(self, prompt: gen.Prompt) -> gen.TokenizeResponse:
        text, is_chat = prompt.text, prompt.HasField("chat")
        if is_chat:
            messages = [json_format.MessageToDict(message) for message in prompt.chat.messages]
            text = await self.tokenizer.render(messages, prompt.chat.add_generation_prompt)
        [found] = await self.tokenizer.encode([text], special_tokens=not is_chat, most=1000)
        return gen.TokenizeResponse(text=text, tokens=[gen.Token(id=id_) for id_ in found.encoded.token_ids])

    def Generate(self, request: gen.GenerateRequest, context: Any) -> gen.GenerateResponse:
        ids = list(request.prompt.token_ids.ids)
        if len(ids) + request.sampling.max_tokens > READS:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too long")
        response = gen.GenerateResponse(completions=[gen.Completion(text="good")])
        response.usage.completion_tokens = request.sampling.max_tokens
        if request.sampling.HasField("prompt_logprobs"):
            self.scored.append(ids)
            with torch.inference_mode():
                logprobs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for place, id_ in enumerate(ids[1:]):
                response.prompt_logprobs.add(token_id=id_, logprob=float(logprobs[place, id_]))
        return response


@pytest.fixture
def served(directory: Path) -> Iterator[tuple[str, Server]]:
    servicer = Server(directory)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield address, servicer
    server.stop(None).wait()


@pytest.mark.parametrize("length", [READS - 1, 24])
@pytest.mark.parametrize("rows", [ROWS, CHATS], ids=["texts", "chats"])
def test_training_evaluate_and_verify_measure_the_same(
    directory: Path, served: tuple[str, Server], rows: list[Row], length: int
) -> None:
    address, server = served
    tokenizer = measurement.load_tokenizer(directory)
    target = tokens.Target("generation", (), "single-label", length)
    trained = list(tokens.encode(tokenizer, target, rows))
    expected = [row["input_ids"] for row in trained]
    counts = [sum(label != tokens.IGNORED for label in row["labels"]) for row in trained]
    # Two of them are cut.
    assert [len(ids) for ids in expected].count(length) >= 1
    assert max(map(len, expected)) == length

    manifest = checkpoint.describe(directory)
    manifest.max_length = length
    measured = measurement.measure_at(address, manifest, rows, directory)
    assert sorted(server.scored) == sorted(expected)
    assert [count for _, count in measured.row_sums] == counts
    here = evaluation.evaluate(server.model, tokenizer, target, rows, bf16=False).metrics
    assert measured.metrics["perplexity"] == pytest.approx(here["perplexity"], rel=1e-4)

    server.scored.clear()
    verdict = verify.verify_at(address, measurement.MODEL, directory, manifest, rows)
    assert server.scored == expected
    assert verdict.is_good


def test_what_counts_is_the_answer_and_its_end(tokenizer: Any) -> None:
    def counted(row: Row, length: int = 1000) -> str:
        found = examples.example(tokenizer, row, length)
        assert len(found.counted) == len(found.ids)
        return tokenizer.decode([id_ for id_, counts in zip(found.ids, found.counted, strict=True) if counts])

    assert counted(ROWS[0]) == "m was good<|im_end|>"
    assert counted(ROWS[2], 24) == " good<|im_end|>"
    assert counted(CHATS[0]) == "the film was good<|im_end|>"
    assert counted(CHATS[1]) == "bad<|im_end|>"
    assert counted(CHATS[2], 24) == "good<|im_end|>"


def test_a_long_prompt_loses_its_beginning_behind_the_systems_turn(tokenizer: Any) -> None:
    found = examples.example(tokenizer, CHATS[2], 60)
    text = tokenizer.decode(found.ids)
    assert len(found.ids) == 60
    assert found.is_truncated
    assert text.startswith("<s><|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("was the film good <|im_end|>\n<|im_start|>assistant\ngood<|im_end|>")
    # Where a system's turn would leave no room for a question it goes, too.
    found = examples.example(tokenizer, CHATS[2], 24)
    assert not tokenizer.decode(found.ids).startswith("<s>")
    assert tokenizer.decode(found.ids).endswith("<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>")
    text = examples.example(tokenizer, ROWS[2], 24)
    before = tokenizer("")["input_ids"][:1]
    assert text.ids[: len(before)] == before
    assert tokenizer.decode(text.ids[: text.start], skip_special_tokens=True).endswith("the long film was")


def test_half_of_the_length_is_left_to_an_answer(tokenizer: Any) -> None:
    found = examples.example(tokenizer, {"prompt": "the film was " * 40, "completion": " good" * 40}, 32)
    assert (len(found.ids), found.start, sum(found.counted)) == (32, 16, 16)
    found = examples.example(tokenizer, ROWS[3], 32)
    assert not found.is_truncated
    assert sum(found.counted) == 32 - len(tokenizer(ROWS[3]["prompt"])["input_ids"])


def learned(tokenizer: Any, row: Row, length: int = 1000) -> list[list[str]]:
    """The answers that count, of each example."""
    found = []
    for one in examples.of_all_turns(tokenizer, row, length):
        runs: list[list[int]] = [[]]
        for id_, counts in zip(one.ids, one.counted, strict=True):
            if counts:
                runs[-1].append(id_)
            elif runs[-1]:
                runs.append([])
        found.append([tokenizer.decode(run) for run in runs if run])
    return found


def test_all_turns_count_and_nothing_between_them(tokenizer: Any) -> None:
    assert learned(tokenizer, CHATS[0]) == [["the film was good<|im_end|>"]]
    assert learned(tokenizer, CHATS[1]) == [["good<|im_end|>", "bad<|im_end|>"]]
    assert learned(tokenizer, ROWS[0]) == [["m was good<|im_end|>"]]
    # What opens a conversation answers nothing.
    opened = {"messages": [{"role": "assistant", "content": "hi"}, *CHATS[0]["messages"]]}
    assert learned(tokenizer, opened) == [["the film was good<|im_end|>"]]
    # A call of a tool and what is made of its result.
    turns = [("user", "how"), ("assistant", "call"), ("tool", "42"), ("assistant", "fine")]
    called = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert learned(tokenizer, called) == [["call<|im_end|>", "fine<|im_end|>"]]


def test_an_earlier_answer_that_is_truncated_into_does_not_count(tokenizer: Any) -> None:
    row = chat("how was it", "the film was good " * 9, "and the movie", "bad")
    assert learned(tokenizer, row) == [["the film was good " * 9 + "<|im_end|>", "bad<|im_end|>"]]
    assert learned(tokenizer, row, 60) == [["bad<|im_end|>"]]
    [cut] = examples.of_all_turns(tokenizer, row, 60)
    assert "film was good <|im_end|>" in tokenizer.decode(cut.ids)


def test_turns_that_are_rendered_otherwise_later_are_learned_as_they_are_said(tokenizer: Any) -> None:
    """As templates of models that reason: only the last answer has its thoughts."""
    thoughts = "{% if loop.last and message.role == 'assistant' %}<think></think>{% endif %}{{ message.content }}"
    tokenizer.chat_template = TEMPLATE.replace("{{ message.content }}", thoughts)
    first, second = "<think></think>good<|im_end|>", "<think></think>bad<|im_end|>"
    assert learned(tokenizer, CHATS[1]) == [[second], [first]]
    whole, part = examples.of_all_turns(tokenizer, CHATS[1], 1000)
    assert "assistant\ngood<|im_end|>" in tokenizer.decode(whole.ids)
    assert part == examples.example(tokenizer, {"messages": CHATS[1]["messages"][:3]}, 1000)
    # Unless it says which they are.
    marked = "{% if message.role == 'assistant' %}{% generation %}" + thoughts + "<|im_end|>{% endgeneration %}"
    turn = marked + "{% else %}{{ message.content }}<|im_end|>{% endif %}"
    tokenizer.chat_template = TEMPLATE.replace("{{ message.content }}<|im_end|>", turn)
    assert learned(tokenizer, CHATS[1]) == [["good<|im_end|>", second]]


@pytest.mark.parametrize(
    ("end", "counted"),
    [("<|im_end|>\n", "good<|im_end|>"), ("</s> \n", "good</s>"), ("\n", "good\n"), ("", "good")],
)
def test_what_a_template_puts_after_a_turn_is_never_asked_for(tokenizer: Any, end: str, counted: str) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}" + end + "{% endfor %}"
    ids, start = examples.answer(tokenizer, chat("how was it", "good"))
    assert tokenizer.decode(ids[start:]) == counted


def test_documents_are_rendered_as_they_are_served(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = "{% for document in documents or [] %}{{ document | tojson }}\n{% endfor %}" + TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    row = CHATS[0] | {"documents": [{"title": "The film", "text": "It was good.", "stars": 4.0}, {"a": [1, None]}]}
    ids, start = examples.answer(tokenizer, row)
    asked, _ = measurement.prompts(row)
    with Violations() as wrong:
        given = conversation(wrong, asked.chat, READS)
    rendered = asyncio.run(Served(tmp_path, READS).render(given.messages, True, documents=given.documents))
    assert rendered.count("The film") == 1
    assert ids[:start] == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_documents_that_the_template_ignores_are_told(tokenizer: Any) -> None:
    row = CHATS[0] | {"documents": [{"text": "It was good."}]}
    with pytest.raises(UserError, match="ignores the documents"):
        examples.answer(tokenizer, row)
    # One that can't do without any.
    tokenizer.chat_template = "{% if not documents %}{{ raise_exception('none') }}{% endif %}" + TEMPLATE
    examples.answer(tokenizer, row)


def test_templates_that_do_not_fit_are_told(tokenizer: Any) -> None:
    def refused(template: str | None, match: str) -> None:
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=match):
            examples.answer(tokenizer, CHATS[0])

    refused("{% for m in messages %}{{ messages | length }}{{ m['content'] }}{% endfor %}", "renders a prompt differ")
    refused(None, "no chat template")
    refused("{{ raise_exception('no user here') }}", "can't render a conversation of user: no user here")


def test_a_tokenizer_without_an_end_ends_nothing(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    ids, start = examples.answer(tokenizer, ROWS[1])
    assert tokenizer.decode(ids[start:]) == " bad"
